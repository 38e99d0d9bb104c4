#pragma once

#include "vectors.h"

namespace fastflow::FASTFLOW_ISA {

// Time steps per task: for few channels enough to be worth a task, for many those of one register tile.
template <class T>
int64_t invconv1x1_tile(const InvConv1x1Params<T>& p) {
  return kColumns<accumulator_t<T>> * max(1, 64 / max(1, p.channels));
}

template <class T>
int64_t invconv1x1_tiles(const InvConv1x1Params<T>& p) {
  return ceil_div(p.time, invconv1x1_tile(p));
}

template <class T>
void invconv1x1(const InvConv1x1Params<T>& p, int64_t begin, int64_t end, const accumulator_t<T>* weight) {
  constexpr int64_t columns = kColumns<accumulator_t<T>>;
  const int64_t tile = invconv1x1_tile(p), tiles = invconv1x1_tiles(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / tiles, last = min(p.time, (task % tiles + 1) * tile);
    for (int64_t t = task % tiles * tile; t < last; t += columns) {
      const int64_t n = last - t;
      T* y = p.y + b * p.channels * p.time + t;
      const T* mask = p.mask ? p.mask + b * p.mask_batch + t : nullptr;
      small_product(
          weight, p.x + b * p.x_batch + t, p.time, p.channels, p.channels, n, [&](int64_t row, int v, Wide<T> sum) {
            const int64_t left = n - v * kLanes<T>;
            if (mask && left > 0) sum *= load_wide(mask + v * kLanes<T>, left);
            if (left > 0) store_wide(y + row * p.time + v * kLanes<T>, sum, left);
          });
    }
  }
}

// log |det matrix| [n, n] by Gaussian elimination with partial pivoting, in place; minus infinity if it is singular.
// It eliminates row by row, as if the rows were columns, which leaves the determinant: a row takes all that the rows
// before it, each scaled by its pivot, have for it while it is in the first-level cache, four at a time.
// pivots [n]: to work in.
inline double log_abs_det(double* matrix, int64_t n, int64_t* pivots) {
  constexpr int together = 4;
  const auto swap = [](double& a, double& b) {
    const double held = a;
    a = b;
    b = held;
  };
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    double* row = matrix + j * n;
    for (int64_t k = 0; k < j; ++k) swap(row[k], row[pivots[k]]);
    int64_t k = 0;
    for (; k + together <= j; k += together) {
      const double* before = matrix + k * n;
      for (int a = 0; a < together; ++a)
        for (int b = 0; b < a; ++b) row[k + a] -= row[k + b] * before[b * n + k + a];
      const double f0 = row[k], f1 = row[k + 1], f2 = row[k + 2], f3 = row[k + 3];
      for (int64_t i = k + together; i < n; ++i)
        row[i] -= (f0 * before[i] + f1 * before[n + i]) + (f2 * before[2 * n + i] + f3 * before[3 * n + i]);
    }
    for (; k < j; ++k) {
      const double factor = row[k];
      const double* before = matrix + k * n;
      for (int64_t i = k + 1; i < n; ++i) row[i] -= factor * before[i];
    }
    int64_t pivot = j;
    for (int64_t i = j + 1; i < n; ++i)
      if (__builtin_fabs(row[i]) > __builtin_fabs(row[pivot])) pivot = i;
    pivots[j] = pivot;
    for (int64_t i = 0; i <= j && pivot != j; ++i) swap(matrix[i * n + j], matrix[i * n + pivot]);
    sum += __builtin_log(__builtin_fabs(row[j]));
    if (row[j] == 0) break;
    for (int64_t i = j + 1; i < n; ++i) row[i] /= row[j];
  }
  return sum;
}

}  // namespace fastflow::FASTFLOW_ISA
