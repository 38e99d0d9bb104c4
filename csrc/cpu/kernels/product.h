// The matrix products inside a WN layer: how weights and activations lie in memory, and the register tile.
//
// Weights are packed into panels of kRows rows, activations into slices of kColumns time steps, so that the innermost
// loop reads both in order:   panel [steps, kRows]   slice [steps, kColumns]
// A step is one depth of the product, or two where elements hold pairs (Bf16Pairs).
#pragma once

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// Operands of the arithmetic's own type.
template <class T>
struct Plain {
  using value = T;
  using element = T;
  static constexpr int depth = 1;

  static void put(element& to, int64_t, T x) { to = x; }
  static void put(element* to, int64_t, typename Vector<T>::type x) { store(to, x); }
  static typename Vector<T>::type multiply_add(
      typename Vector<T>::type sum, element weight, typename Vector<T>::type x) {
    return sum + weight * x;
  }
  using operand = typename Vector<T>::type;
};

// Operands rounded to bfloat16, two depths in one element; products and sums stay float32.
struct Bf16Pairs {
  using value = float;
  using element = uint32_t;
  static constexpr int depth = 2;
  using operand = Bits;

  // Depths are put in order: an even one clears the other half, which is then right where an odd one is missing.
  static void put(element& to, int64_t k, float x) {
    const uint32_t bits = round_to_bf16(__builtin_bit_cast(uint32_t, x));
    to = k % 2 ? to | (bits & 0xffff0000u) : bits >> 16;
  }
  static void put(element* to, int64_t k, Vector<float>::type x) {
    const Bits bits = round_to_bf16(__builtin_bit_cast(Bits, x));
    store(to, k % 2 ? load<element>(to) | (bits & 0xffff0000u) : bits >> 16);
  }
  static Vector<float>::type multiply_add(Vector<float>::type sum, element weight, Bits x) {
    return dot_bf16_pairs(sum, Bits{} + weight, x);
  }
};

template <class O>
constexpr int64_t steps(int64_t depth) {
  return ceil_div(depth, O::depth);
}

// Writes depth k of a panel; weight(r) is what row r has there.
template <class O, class F>
void put_weights(typename O::element* panel, int64_t k, const F& weight) {
  for (int r = 0; r < kRows; ++r) O::put(panel[k / O::depth * kRows + r], k, weight(r));
}

// Where depth k of a slice is written, vector by vector.
template <class O>
typename O::element* depth_of(typename O::element* slice, int64_t k) {
  return slice + k / O::depth * kColumns<typename O::value>;
}

template <class O>
void put_row(typename O::element* slice, int64_t k, const typename O::value* row) {
  using T = typename O::value;
  for (int v = 0; v < kVectors; ++v)
    O::put(depth_of<O>(slice, k) + v * Vector<T>::lanes, k, load(row + v * Vector<T>::lanes));
}

// A register tile [kRows, V vectors]: kVectors, or 1 where half a slice is enough.
template <class T, int V = kVectors>
using Tile = typename Vector<T>::type[kRows][V];

// sum += panel transposed @ slice
template <class O, int V = kVectors>
inline __attribute__((always_inline)) void multiply(
    const typename O::element* panel, const typename O::element* slice, int64_t steps,
    Tile<typename O::value, V>& sum) {
  using T = typename O::value;
  for (int64_t k = 0; k < steps; ++k) {
    typename O::operand column[V];
    for (int v = 0; v < V; ++v) column[v] = load(slice + k * kColumns<T> + v * Vector<T>::lanes);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = O::multiply_add(sum[r][v], panel[k * kRows + r], column[v]);
  }
}

// The same for weights that were not packed: row r of the panel is rows[r] [steps].
template <class O, int V = kVectors>
inline __attribute__((always_inline)) void multiply_rows(
    const typename O::element* const (&rows)[kRows], const typename O::element* slice, int64_t steps,
    Tile<typename O::value, V>& sum) {
  using T = typename O::value;
  for (int64_t k = 0; k < steps; ++k) {
    typename O::operand column[V];
    for (int v = 0; v < V; ++v) column[v] = load(slice + k * kColumns<T> + v * Vector<T>::lanes);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = O::multiply_add(sum[r][v], rows[r][k], column[v]);
  }
}

template <class T, int V>
inline __attribute__((always_inline)) void load_tile(const T* from, Tile<T, V>& tile) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < V; ++v) tile[r][v] = load(from + r * kColumns<T> + v * Vector<T>::lanes);
}

template <class T, int V>
inline __attribute__((always_inline)) void store_tile(const Tile<T, V>& tile, T* to) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < V; ++v) store(to + r * kColumns<T> + v * Vector<T>::lanes, tile[r][v]);
}

}  // namespace fastflow::FASTFLOW_ISA
