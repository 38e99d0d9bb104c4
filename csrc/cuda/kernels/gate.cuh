#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../../params.h"

namespace fastflow {

// Type of the arithmetic: float32 or wider.
template <class T>
using gate_accumulator_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// One thread per element, in grid-sized strides; neighbouring threads touch neighbouring time steps.
template <class T>
__global__ void gate_kernel(const GateParams<T> p) {
  using acc_t = gate_accumulator_t<T>;
  const int64_t total = p.batch * p.channels * p.time;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t b = i / (p.channels * p.time), within = i % (p.channels * p.time);
    const T* x = p.x + b * p.x_batch + within;
    const acc_t filter = static_cast<acc_t>(x[0]);
    const acc_t gate = static_cast<acc_t>(x[p.channels * p.time]);
    p.y[i] = static_cast<T>(tanh(filter) / (acc_t(1) + exp(-gate)));
  }
}

template <class T>
void launch_gate(const GateParams<T>& p, cudaStream_t stream) {
  constexpr int threads = 256;
  const int64_t blocks = (p.batch * p.channels * p.time + threads - 1) / threads;
  constexpr int64_t max_blocks = 1 << 20;  // well under the grid's limit; the stride covers the rest
  gate_kernel<T><<<static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks), threads, 0, stream>>>(p);
}

}  // namespace fastflow
