// How the threads of one block meet, and how lanes of one warp exchange registers.
#pragma once

#include <arch/platform.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

__device__ __forceinline__ void sync_threads() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Barriers 1 to 15 of the block for `threads` of its threads, a multiple of 32; 0 is sync_threads().
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts as arrived without waiting for the others.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// To be called by all lanes of a warp.
template <class V>
__device__ __forceinline__ V shuffle_xor(V v, int mask) {
  static_assert(sizeof(V) == 4);
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <class V>
__device__ __forceinline__ V shuffle(V v, int lane) {
  static_assert(sizeof(V) == 4);
  return __shfl_sync(0xffffffffu, v, lane);
}

// The sum over the warp, in every lane.
template <class V>
__device__ __forceinline__ V warp_sum(V v) {
  static_assert(std::is_same_v<V, float> || std::is_same_v<V, double>);
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
