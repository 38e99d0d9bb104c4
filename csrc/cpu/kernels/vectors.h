// One vector of values as the kernels compute with them, loaded from memory of any type, and a product made of these.
#pragma once

#include "../../params.h"
#include "../bfloat16.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
using Wide = typename Vector<accumulator_t<T>>::type;

template <class T>
constexpr int64_t kLanes = Vector<accumulator_t<T>>::lanes;

template <class T>
inline Wide<T> load_wide(const T* from) {
  Wide<T> v;
  if constexpr (sizeof(T) == 2) {
    typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    typedef uint32_t Whole __attribute__((vector_size(kVectorBytes)));
    Half half;
    __builtin_memcpy(&half, from, sizeof half);
    v = reinterpret_cast<Wide<T>>(__builtin_convertvector(half, Whole) << 16);
  } else {
    __builtin_memcpy(&v, from, sizeof v);
  }
  return v;
}

// The first n of them, the others 0; n may be 0 or less.
template <class T>
inline Wide<T> load_wide(const T* from, int64_t n) {
  if (n >= kLanes<T>) return load_wide(from);
  T part[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = from[i];
  return load_wide(part);
}

template <class T>
inline void store_wide(T* to, Wide<T> v, int64_t n) {
  if constexpr (sizeof(T) != 2) {
    if (n >= kLanes<T>) {
      __builtin_memcpy(to, &v, sizeof v);
      return;
    }
  }
  for (int64_t i = 0; i < min(n, kLanes<T>); ++i) to[i] = narrow<T>(v[i]);
}

// Rows of a product that share what is loaded: rows * kVectors sums, kVectors operands and one broadcast value fit the
// registers.
constexpr int kProductRows = kRows >= 8 ? 8 : 4;

// out(row, vector, sum) for `ROWS` rows of weight [ROWS, depth] @ x [depth, kColumns], rows of x `stride` apart. Only
// the first n columns are read, if FULL is false.
template <int ROWS, bool FULL, class T, class Out>
inline __attribute__((always_inline)) void small_product_rows(
    const accumulator_t<T>* weight, const T* x, int64_t stride, int64_t depth, int64_t n, const Out& out) {
  Wide<T> sum[ROWS][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Wide<T> column[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const T* from = x + k * stride + v * kLanes<T>;
      column[v] = FULL ? load_wide(from) : load_wide(from, n - v * kLanes<T>);
    }
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += weight[r * depth + k] * column[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < kVectors; ++v) out(r, v, sum[r][v]);
}

template <bool FULL, class T, class Out>
void small_product_columns(
    const accumulator_t<T>* weight, const T* x, int64_t stride, int64_t rows, int64_t depth, int64_t n,
    const Out& out) {
  int64_t row = 0;
  const auto some = [&]<int ROWS>() {
    small_product_rows<ROWS, FULL>(
        weight + row * depth, x, stride, depth, n, [&](int r, int v, Wide<T> sum) { out(row + r, v, sum); });
    row += ROWS;
  };
  while (rows - row >= kProductRows) some.template operator()<kProductRows>();
  if (rows - row >= 4) some.template operator()<4>();
  if (rows - row >= 2) some.template operator()<2>();
  if (rows - row >= 1) some.template operator()<1>();
}

// out(row, vector, sum) for weight [rows, depth] @ x [depth, n], where n is at most kColumns. The weight has been
// widened.
template <class T, class Out>
void small_product(
    const accumulator_t<T>* weight, const T* x, int64_t stride, int64_t rows, int64_t depth, int64_t n,
    const Out& out) {
  if (n >= kColumns<accumulator_t<T>>) {
    small_product_columns<true>(weight, x, stride, rows, depth, n, out);
  } else {
    small_product_columns<false>(weight, x, stride, rows, depth, n, out);
  }
}

}  // namespace fastflow::FASTFLOW_ISA
