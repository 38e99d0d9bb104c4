// Kernels that break the rules of benchmarks/compiled.py, and one that keeps them.
#include <cstdint>

namespace fastflow {
namespace {

// 128 values of a thread, all of them in use, in the 64 registers that the launch bounds leave it.
template <class T>
__global__ void __launch_bounds__(1024) spilling(T* x, int n) {
  T v[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) v[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) x[i * n + threadIdx.x] = v[(i + 17) % 128] + v[i] * v[127 - i];
}

template <int N>
__global__ void toy_sm80_without_products(float* x) {
  x[threadIdx.x] *= N;
}

template <int N>
__global__ void toy_sm80(float* x, const uint32_t* p) {
  float d[4] = {x[0], x[1], x[2], x[3]};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(p[4]), "r"(p[5]));
  x[threadIdx.x] = d[0] + d[1] + d[2] + d[3] + N;
}

}  // namespace

void launch_all(float* x, const uint32_t* p) {
  spilling<float><<<1, 1024>>>(x, 1024);
  toy_sm80_without_products<3><<<1, 32>>>(x);
  toy_sm80<4><<<1, 32>>>(x, p);
}

}  // namespace fastflow
