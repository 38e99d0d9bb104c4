// Asynchronous copies from global to shared memory that each thread starts and awaits for itself (sm_80).
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

// 16 bytes, both sides on a boundary of 16, past the first-level cache; zeros when not `valid`, and `src` is not read,
// but it must be an address of global memory.
__device__ __forceinline__ void copy_async_16(shared_t dst, const void* src, bool valid) {
#if FASTFLOW_SM80
  const uint32_t bytes = valid ? 16 : 0;
  const size_t global = __cvta_generic_to_global(src);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(global), "r"(bytes) : "memory");
#else
  __trap();
#endif
}

// Closes a group of the calling thread's copies; an empty group is complete at once.
__device__ __forceinline__ void copy_commit() {
#if FASTFLOW_SM80
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  __trap();
#endif
}

// Waits until at most the N youngest groups of the calling thread are in flight. Other threads see the copies after a
// barrier.
template <int N>
__device__ __forceinline__ void copy_wait() {
#if FASTFLOW_SM80
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  __trap();
#endif
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
