// Model of csrc/cuda/arch/mma.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

template <class T>
constexpr emulator::Element element_of = std::is_same_v<T, half>       ? emulator::Element::kHalf
                                         : std::is_same_v<T, bfloat16> ? emulator::Element::kBfloat16
                                                                       : emulator::Element::kTf32;

inline void load_matrix_x4(uint32_t (&r)[4], shared_t row, Location at = Location::current()) {
  emulator::load_matrix_x4(r, row, false, at);
}
inline void load_matrix_x4_trans(uint32_t (&r)[4], shared_t row, Location at = Location::current()) {
  emulator::load_matrix_x4(r, row, true, at);
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Location at = Location::current()) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16> || std::is_same_v<T, float>);
  emulator::mma(element_of<T>, d, a, b, at);
}

// Ties round away from zero.
inline uint32_t round_tf32(uint32_t v) { return (v & 0x7f800000u) == 0x7f800000u ? v : (v + 0x1000u) & ~0x1fffu; }

}  // namespace fastflow::arch
