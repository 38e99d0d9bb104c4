// Clusters of blocks, which reach each other's shared memory (sm_90).
#pragma once

#include <arch/memory.cuh>
#include <arch/sm90.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank = 0;
  FASTFLOW_PTX_SM90A("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size = 0;
  FASTFLOW_PTX_SM90A("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
}

// The two halves of a barrier among all threads of the cluster.
__device__ __forceinline__ void cluster_arrive() {
  FASTFLOW_PTX_SM90A("barrier.cluster.arrive.release;" :: : "memory");
}
__device__ __forceinline__ void cluster_wait() { FASTFLOW_PTX_SM90A("barrier.cluster.wait.acquire;" :: : "memory"); }
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Stores where the cluster's block `rank` (perhaps this one) has the address that is `local` here.
template <class V>
__device__ __forceinline__ void store_shared_cluster(shared_t local, uint32_t rank, V value) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  uint32_t words[sizeof(V) / 4];
  __builtin_memcpy(words, &value, sizeof(V));
  [[maybe_unused]] uint32_t remote = 0;
  FASTFLOW_PTX_SM90A("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  if constexpr (sizeof(V) == 4) {
    FASTFLOW_PTX_SM90A("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(words[0]) : "memory");
  } else if constexpr (sizeof(V) == 8) {
    FASTFLOW_PTX_SM90A(
        "st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(remote), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
    FASTFLOW_PTX_SM90A(
        "st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(remote), "r"(words[0]), "r"(words[1]), "r"(words[2]),
        "r"(words[3]) : "memory");
  }
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
