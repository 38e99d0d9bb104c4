// What kernels take from the compiler, as a model for ordinary C++: csrc/cuda/arch/platform.cuh describes each name.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../params.h"
#include "../engine.h"

#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx ::fastflow::emulator::thread_index
#define blockIdx ::fastflow::emulator::block_index
#define gridDim ::fastflow::emulator::grid_size
#define blockDim ::fastflow::emulator::block_size

#define FASTFLOW_SM80 1
#define FASTFLOW_SM90A 1

// The toolkit's vector types that kernels move memory in.
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace fastflow::arch {

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

inline float to_float(float v) { return v; }
inline float to_float(bfloat16 v) { return std::bit_cast<float>(uint32_t(v.bits) << 16); }
inline float to_float(half v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | magnitude << 13);  // infinite or NaN
  // moving the exponent's bias by a multiplication takes care of subnormal numbers
  const float value = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>((254u - 15) << 23);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

inline int thread_index() { return static_cast<int>(threadIdx.x); }

template <class T>
T from_float(float v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    const uint32_t bits = std::bit_cast<uint32_t>(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (magnitude > 0x7f800000u) return {0x7fff};
      return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
    } else {
      static_assert(std::is_same_v<T, half>);
      if (magnitude > 0x7f800000u) return {0x7fff};
      if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
      if (magnitude < 0x38800000u) {  // subnormal: an addition aligns the bits that stay, and rounds
        const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
        return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u))};
      }
      const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
      return {static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
    }
  }
}

template <class T>
accumulator_t<T> widen(T v) {
  if constexpr (std::is_same_v<T, double>) {
    return v;
  } else {
    return to_float(v);
  }
}

template <class T>
T narrow(accumulator_t<T> v) {
  if constexpr (std::is_same_v<T, double>) {
    return v;
  } else {
    return from_float<T>(v);
  }
}

template <class T>
uint32_t pack2(float lo, float hi) {
  return from_float<T>(lo).bits | uint32_t(from_float<T>(hi).bits) << 16;
}

template <class T>
void unpack2(uint32_t r, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(r)});
  hi = to_float(T{static_cast<uint16_t>(r >> 16)});
}

inline float tanh(float v) { return std::tanh(v); }
inline double tanh(double v) { return std::tanh(v); }
inline float exp(float v) { return std::exp(v); }
inline double exp(double v) { return std::exp(v); }
inline float log(float v) { return std::log(v); }
inline double log(double v) { return std::log(v); }
inline float log1p(float v) { return std::log1p(v); }
inline double log1p(double v) { return std::log1p(v); }
inline float abs(float v) { return std::fabs(v); }
inline double abs(double v) { return std::fabs(v); }

// The instruction's relative error is 2^-11; so is that of a result rounded to 11 bits.
inline float tanh_approx(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(std::tanh(v));
  if (v != v) return v;
  return std::bit_cast<float>((bits + 0xfffu + (bits >> 13 & 1)) & ~0x1fffu);
}

}  // namespace fastflow::arch
