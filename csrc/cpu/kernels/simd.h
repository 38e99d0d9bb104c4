// Vector width, register tile and the transcendental functions of the gate, for the instruction set at hand.
//
// kernels.cpp, and through it everything in this folder, is compiled once per instruction set, with FASTFLOW_ISA naming
// the namespace. No function here may be shared between the copies, which is why there is no <algorithm> or <vector>.
#pragma once

#include <cstdint>
#include <type_traits>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifndef FASTFLOW_ISA
#error "define FASTFLOW_ISA: baseline, avx2, avx512 or avx512_bf16"
#endif

namespace fastflow::FASTFLOW_ISA {

// kRows x kVectors accumulators, kVectors operands and one broadcast value must fit the vector registers.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;  // 32 registers: 12 * 2 + 2 + 1
constexpr int kRows = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;  // 16 registers: 6 * 2 + 2 + 1
constexpr int kRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;  // 32 registers: 12 * 2 + 2 + 1
constexpr int kRows = 12;
#else
constexpr int kVectorBytes = 16;  // 16 registers, no fused multiply-add: one more for the product
constexpr int kRows = 6;
#endif
constexpr int kVectors = 2;

// Whether layers in bfloat16 multiply pairs of it. Without an instruction for that, float32 products are faster; the
// baseline, which is never chosen for its speed, does it so that tests run that code on every processor.
#if defined(__AVX512BF16__) || !(defined(__AVX2__) || defined(__aarch64__))
constexpr bool kBf16Pairs = true;
#else
constexpr bool kBf16Pairs = false;
#endif

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};

// Loads and stores at any address.
template <class T>
inline typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
template <class T>
inline void store(T* to, typename Vector<T>::type x) {
  __builtin_memcpy(to, &x, sizeof(x));
}

template <class T>
constexpr int64_t kColumns = kVectors * Vector<T>::lanes;  // width of a register tile in time steps

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

using Bits = Vector<uint32_t>::type;

// The bits of a float32 rounded to bfloat16, ties to even, in the upper half; the lower half is left over.
template <class B>  // uint32_t or a vector of it
inline B round_to_bf16(B bits) {
  // A NaN keeps its upper half and becomes quiet: rounding could make an infinity of it.
  const B nan = bits | 0x00400000u, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
}

// sum + a.low * b.low + a.high * b.high, each lane a pair of bfloat16
inline Vector<float>::type dot_bf16_pairs(Vector<float>::type sum, Bits a, Bits b) {
#ifdef __AVX512BF16__
  return reinterpret_cast<Vector<float>::type>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#else
  using V = Vector<float>::type;
  const V a_low = __builtin_bit_cast(V, a << 16), a_high = __builtin_bit_cast(V, a & 0xffff0000u);
  const V b_low = __builtin_bit_cast(V, b << 16), b_high = __builtin_bit_cast(V, b & 0xffff0000u);
  return sum + a_low * b_low + a_high * b_high;
#endif
}

// The next three are written without branches or library calls, so that loops over them become vector code.

// exp(x) for x <= 0, within 2 units in the last place; below -87, where the result leaves the normal range, e^-87.
inline float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;  // a NaN fails the comparison and stays
  // Adding 1.5 * 2^23 rounds to an integer n, which then stands in the low bits.
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts; |r| <= ln(2) / 2
  // Taylor series to r^7: the remainder is below 6e-9.
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = __builtin_bit_cast(int32_t, shifted) - __builtin_bit_cast(int32_t, 12582912.0f) + 127;
  return p * __builtin_bit_cast(float, static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23));
}

inline float tanh_value(float x) {
  const float magnitude = __builtin_fabsf(x);
  // Near 0 the quotient below cancels: there the odd Taylor series to x^11 (|x| < 0.35: remainder below 1.3e-8 x).
  const float z = x * x;
  float p = -1382.0f / 155925.0f;
  p = p * z + 62.0f / 2835.0f;
  p = p * z - 17.0f / 315.0f;
  p = p * z + 2.0f / 15.0f;
  p = p * z - 1.0f / 3.0f;
  const float near_zero = x + x * z * p;
  const float e = exp_negative(-2.0f * magnitude);
  const float far = __builtin_copysignf((1.0f - e) / (1.0f + e), x);
  return magnitude < 0.35f ? near_zero : far;
}

inline float sigmoid_value(float x) {
  const float e = exp_negative(-__builtin_fabsf(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// float64 is for checking, not for speed: the C library's functions.
inline double tanh_value(double x) { return __builtin_tanh(x); }
inline double sigmoid_value(double x) {
  const double e = __builtin_exp(-__builtin_fabs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

}  // namespace fastflow::FASTFLOW_ISA
