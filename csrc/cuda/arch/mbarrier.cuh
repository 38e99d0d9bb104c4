// Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies (sm_90).
#pragma once

#include <arch/memory.cuh>
#include <arch/sm90.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

// A phase ends after `count` arrivals, and after all bytes that were expected in it have come.
__device__ __forceinline__ void mbarrier_init(shared_t barrier, uint32_t count) {
  FASTFLOW_PTX_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes initialised barriers visible to the cluster and to the copy engine; a block or cluster barrier must follow.
__device__ __forceinline__ void fence_mbarrier_init() {
  FASTFLOW_PTX_SM90A("fence.mbarrier_init.release.cluster;" :: : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(shared_t barrier) {
  FASTFLOW_PTX_SM90A("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets this phase wait for `bytes` more.
__device__ __forceinline__ void mbarrier_arrive_expect(shared_t barrier, uint32_t bytes) {
  FASTFLOW_PTX_SM90A(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier that the cluster's block `rank` (perhaps this one) has at the same address. What this thread
// stored before is seen by those who return from mbarrier_wait_cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(shared_t barrier, uint32_t rank) {
  FASTFLOW_PTX_SM90A(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank) : "memory");
}

// The same without that promise, which costs a wait for all of this thread's stores: for memory that was only read.
__device__ __forceinline__ void mbarrier_arrive_relaxed(shared_t barrier, uint32_t rank) {
  FASTFLOW_PTX_SM90A(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank) : "memory");
}

// Returns once the phase of this parity has ended. Of a new barrier the (imagined) phase of parity 1 has.
__device__ __forceinline__ void mbarrier_wait(shared_t barrier, uint32_t parity) {
  FASTFLOW_PTX_SM90A(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity) : "memory");
}

// The same, to see what other blocks stored before mbarrier_arrive_cluster; it throws away the L1 cache.
__device__ __forceinline__ void mbarrier_wait_cluster(shared_t barrier, uint32_t parity) {
  FASTFLOW_PTX_SM90A(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity) : "memory");
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
