// bfloat16 as the kernels see it: the upper half of a float32. They compute in float32 and round once, on storing.
#pragma once

#include <cstdint>

namespace fastflow {

struct bfloat16 {
  uint16_t bits;
};

// The first three overloads of each let one kernel serve every type. Without branches: loops become vector code.
// `static`: each instruction set has copies of its own.

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(bfloat16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

// To nearest, ties to even; a NaN stays one.
static inline bfloat16 round_to_bfloat16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : rounded)};
}

template <class T, class A>
static inline T narrow(A x) {
  if constexpr (sizeof(T) == 2) {
    return round_to_bfloat16(x);
  } else {
    return x;
  }
}

}  // namespace fastflow
