// Model of csrc/cuda/arch/wgmma.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

inline void wgmma_fence(Location at = Location::current()) { emulator::wgmma_fence(at); }
inline void wgmma_commit(Location at = Location::current()) { emulator::wgmma_commit(at); }
template <int N>
void wgmma_wait(Location at = Location::current()) {
  emulator::wgmma_wait(N, at);
}
template <int COUNT>
void wgmma_keep(float (&)[COUNT]) {}

inline uint64_t wgmma_descriptor(shared_t address) {
  return uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 16 | (address & 0x3ffff) >> 4;
}

template <class T, int N>
void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate, Location at = Location::current()) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>);
  static_assert(N == 64 || N == 128 || N == 256);
  constexpr auto type = std::is_same_v<T, half> ? emulator::Element::kHalf : emulator::Element::kBfloat16;
  emulator::wgmma(type, N, d, a, b, accumulate, at);
}

}  // namespace fastflow::arch
