// Model of csrc/cuda/arch/barrier.cuh.
#pragma once

#include <arch/platform.cuh>

namespace fastflow::arch {

using emulator::Location;

inline void sync_threads(Location at = Location::current()) { emulator::sync_threads(at); }
inline void sync_warp(Location at = Location::current()) { emulator::sync_warp(at); }
inline void named_barrier_sync(int id, int threads, Location at = Location::current()) {
  emulator::named_barrier_sync(id, threads, at);
}
inline void named_barrier_arrive(int id, int threads, Location at = Location::current()) {
  emulator::named_barrier_arrive(id, threads, at);
}

template <class V>
V shuffle_xor(V v, int mask, Location at = Location::current()) {
  static_assert(sizeof(V) == 4);
  return std::bit_cast<V>(static_cast<uint32_t>(emulator::shuffle_xor(std::bit_cast<uint32_t>(v), mask, at)));
}
template <class V>
V shuffle(V v, int lane, Location at = Location::current()) {
  static_assert(sizeof(V) == 4);
  return std::bit_cast<V>(static_cast<uint32_t>(emulator::shuffle(std::bit_cast<uint32_t>(v), lane, at)));
}

template <class V>
V warp_sum(V v, Location at = Location::current()) {
  static_assert(std::is_same_v<V, float> || std::is_same_v<V, double>);
  using Bits = std::conditional_t<sizeof(V) == 8, uint64_t, uint32_t>;
  for (int mask = 16; mask > 0; mask /= 2) {
    v += std::bit_cast<V>(static_cast<Bits>(emulator::shuffle_xor(std::bit_cast<Bits>(v), mask, at)));
  }
  return v;
}

}  // namespace fastflow::arch
