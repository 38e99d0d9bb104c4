// Model of csrc/cuda/arch/cluster.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

inline uint32_t cluster_rank() { return emulator::cluster_rank(); }
inline uint32_t cluster_size() { return emulator::cluster_size(); }
inline void cluster_arrive(Location at = Location::current()) { emulator::cluster_arrive(at); }
inline void cluster_wait(Location at = Location::current()) { emulator::cluster_wait(at); }
inline void cluster_sync(Location at = Location::current()) { emulator::cluster_sync(at); }

template <class V>
void store_shared_cluster(shared_t local, uint32_t rank, V value, Location at = Location::current()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  std::memcpy(emulator::store_shared_cluster(local, rank, sizeof(V), at), &value, sizeof(V));
}

}  // namespace fastflow::arch
