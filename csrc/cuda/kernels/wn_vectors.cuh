// What the WN kernels add to the gate's input at every step: biases and conditioning that is constant in time, and the
// input bias's share of each tap. One warp makes one element; all of it together is as much work as one time step.
#pragma once

#include <arch/barrier.cuh>
#include <arch/launch.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>

#include "../../params.h"

namespace fastflow {

// Sum over i < size of a[i] * b[i], by a whole warp; every lane gets it.
template <class T>
__device__ __forceinline__ accumulator_t<T> wn_warp_dot(const T* a, const T* b, int size) {
  accumulator_t<T> sum = 0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < size; i += 32) {
    sum += arch::widen(arch::load_global<T>(a + i)) * arch::widen(arch::load_global<T>(b + i));
  }
  return arch::warp_sum(sum);
}

template <class T>
__global__ void __launch_bounds__(256) wn_vectors_kernel(const WnParams<T> p) {
  using acc_t = accumulator_t<T>;
  const int rows = 2 * p.gate_channels;
  const int64_t adds = static_cast<int64_t>(p.layers) * p.vector_batch * p.phases * rows;
  const int64_t taps = p.tap_add ? static_cast<int64_t>(p.layers) * p.tap_batch * p.kernel_size * rows : 0;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const bool first_lane = threadIdx.x % 32 == 0;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; i < adds + taps; i += warps) {
    if (i < adds) {  // gate_add [layers, vector_batch, P, 2G]
      const int row = static_cast<int>(i % rows), phase = static_cast<int>(i / rows % p.phases);
      const int64_t b = i / rows / p.phases % p.vector_batch;
      const WnLayerArrays<T>& layer = p.layer[i / rows / p.phases / p.vector_batch];
      acc_t sum = 0;
      if (layer.conv_bias) sum += arch::widen(arch::load_global<T>(layer.conv_bias + row));
      if (layer.cond_bias) {
        const int from = (layer.cond_bias_by_phase ? phase * rows : 0) + row;
        sum += arch::widen(arch::load_global<T>(layer.cond_bias + from));
      }
      if (p.cond == WnCond::kGlobal) {
        const T* weight = layer.cond_weight + static_cast<int64_t>(row) * p.cond_channels;
        sum += wn_warp_dot(weight, layer.cond + b * p.cond_batch, p.cond_channels);
      }
      if (p.cond == WnCond::kProjectedGlobal) {
        sum += arch::widen(arch::load_global<T>(layer.cond + b * p.cond_batch + row));
      }
      if (first_lane) arch::store_global<acc_t>(p.gate_add + i, sum);
    } else {  // tap_add [layers, tap_batch, k, 2G]
      const int64_t j = i - adds;
      const int row = static_cast<int>(j % rows);
      const int64_t tap = j / rows % p.kernel_size, b = j / rows / p.kernel_size % p.tap_batch;
      const WnLayerArrays<T>& layer = p.layer[j / rows / p.kernel_size / p.tap_batch];
      const T* weight = layer.conv_weight + (row * int64_t(p.kernel_size) + tap) * p.channels;
      const acc_t sum = wn_warp_dot(weight, layer.input_bias + b * p.channels, p.channels);
      if (first_lane) arch::store_global<acc_t>(p.tap_add + j, sum);
    }
  }
}

template <class T>
void launch_wn_vectors(const WnParams<T>& p, arch::Stream stream) {
  constexpr int threads = 256, per_block = threads / 32;
  const int64_t taps = p.tap_add ? int64_t(p.tap_batch) * p.kernel_size : 0;
  const int64_t adds = int64_t(p.vector_batch) * p.phases;
  const int64_t elements = int64_t(p.layers) * (adds + taps) * 2 * p.gate_channels;
  const int64_t blocks = (elements + per_block - 1) / per_block;
  constexpr int64_t max_blocks = 4096;  // several waves of any GPU; the stride covers the rest
  if (blocks == 0) return;
  const unsigned grid = static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks);
  arch::launch(wn_vectors_kernel<T>, p, arch::Launch{{grid, 1, 1}, threads, 0}, stream);
}

}  // namespace fastflow
