// Determinant and inverse of a matrix by one block, in float64. Flows have matrices of a few channels: what counts is
// that it is done beside the blocks that stream the data, without a launch of its own.
#pragma once

#include <arch/barrier.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>

#include "lane_tile.cuh"

namespace fastflow {

// [size, size] in global memory, or in shared memory where `global` is null.
struct SquareMatrix {
  double* global;
  arch::shared_t shared;
  int size;

  __device__ __forceinline__ double load(int i, int j) const {
    const int64_t at = static_cast<int64_t>(i) * size + j;
    return global ? arch::load_global<double>(global + at)
                  : arch::load_shared<double>(shared + static_cast<uint32_t>(at * 8));
  }
  __device__ __forceinline__ void store(int i, int j, double v) const {
    const int64_t at = static_cast<int64_t>(i) * size + j;
    if (global) {
      arch::store_global<double>(global + at, v);
    } else {
      arch::store_shared<double>(shared + static_cast<uint32_t>(at * 8), v);
    }
  }

  // f(i, j) for all elements, shared out to the block.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int64_t count = static_cast<int64_t>(size) * size;
    for (int64_t at = threadIdx.x; at < count; at += blockDim.x) {
      f(static_cast<int>(at / size), static_cast<int>(at % size));
    }
  }
};

// Bytes of shared memory that eliminate() needs beside the matrix.
__host__ __device__ constexpr int elimination_bytes(int size) { return 16 + 4 * size; }

// Gauss elimination with partial pivoting by the whole block. Returns log |det a| in every thread: minus infinity for a
// singular matrix, NaN for one with a NaN. With INVERT, leaves the inverse in `a`, but for its order of columns: column
// k is the inverse's column elimination_column(work, k). The block must pass a barrier before, after filling `a`.
template <bool INVERT>
__device__ double eliminate(const SquareMatrix& a, arch::shared_t work) {
  const int n = a.size, thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const arch::shared_t pivot_value = work, pivot_row = work + 8, order = work + 16;
  for (int i = thread; i < n; i += threads) arch::store_shared<int32_t>(order + 4 * i, i);
  double log_det = 0;
  for (int k = 0; k < n; ++k) {
    if (thread < 32) {
      double best = -1;
      int row = k;
      for (int i = k + thread; i < n; i += 32) {
        double magnitude = arch::abs(a.load(i, k));
        if (!(magnitude == magnitude)) magnitude = 1.79e308;  // the largest: a NaN must not be passed over
        if (magnitude > best) {
          best = magnitude;
          row = i;
        }
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        const double other = exchange(best, mask);
        const int other_row = arch::shuffle_xor(row, mask);
        if (other > best || (other == best && other_row < row)) {
          best = other;
          row = other_row;
        }
      }
      if (thread == 0) {
        arch::store_shared<double>(pivot_value, a.load(row, k));
        arch::store_shared<int32_t>(pivot_row, row);
      }
    }
    arch::sync_threads();
    const double pivot = arch::load_shared<double>(pivot_value);
    const int row = arch::load_shared<int32_t>(pivot_row);
    log_det += arch::log(arch::abs(pivot));
    if (!INVERT && pivot == 0) break;  // nothing but zeros is below: the logarithm is minus infinity, and stays it
    const double inverse = 1 / pivot;
    for (int j = thread; j < n; j += threads) {
      const double v = a.load(row, j);
      if (row != k) a.store(row, j, a.load(k, j));
      a.store(k, j, INVERT ? (j == k ? inverse : v * inverse) : v);
    }
    if (thread == 0 && row != k) {
      const int32_t moved = arch::load_shared<int32_t>(order + 4 * row);
      arch::store_shared<int32_t>(order + 4 * row, arch::load_shared<int32_t>(order + 4 * k));
      arch::store_shared<int32_t>(order + 4 * k, moved);
    }
    arch::sync_threads();
    a.for_each([&](int i, int j) {
      if (INVERT ? (i != k && j != k) : (i > k && j > k)) {
        const double factor = INVERT ? a.load(i, k) : a.load(i, k) * inverse;
        a.store(i, j, a.load(i, j) - factor * a.load(k, j));
      }
    });
    arch::sync_threads();
    if (INVERT) {
      for (int i = thread; i < n; i += threads) {
        if (i != k) a.store(i, k, -a.load(i, k) * inverse);
      }
      arch::sync_threads();
    }
  }
  return log_det;
}

__device__ __forceinline__ int elimination_column(arch::shared_t work, int k) {
  return arch::load_shared<int32_t>(work + 16 + 4 * k);
}

}  // namespace fastflow
