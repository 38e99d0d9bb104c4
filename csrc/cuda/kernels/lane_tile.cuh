// How the kernels of the small operations go through memory. They are as fast as their bytes: each warp takes a tile of
// neighbouring elements of a row, each lane 16 bytes at a time where rows are aligned to that, else single elements
// side by side with those of the other lanes.
#pragma once

#include <arch/barrier.cuh>
#include <arch/launch.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>
#include <stdexcept>

#include "../../params.h"

namespace fastflow {

// N elements of each lane, in a row of `length`; the tile may begin before the row and end after it.
template <class T, int N>
struct LaneTile {
  using acc_t = accumulator_t<T>;
  static constexpr int kSize = 32 * N;
  static constexpr int kVector = N * sizeof(T) < 16 ? N : static_cast<int>(16 / sizeof(T));
  static_assert(N % kVector == 0);

  struct alignas(kVector * sizeof(T)) Vector {
    T v[kVector];
  };

  int64_t first, length;
  int lane;
  bool vectors;  // whole tiles only: no access has to be cut

  // `aligned`: whether all rows are, at `first`, for whole vectors.
  __device__ __forceinline__ LaneTile(int64_t first, int64_t length, bool aligned)
      : first(first),
        length(length),
        lane(static_cast<int>(threadIdx.x % 32)),
        vectors(aligned && first >= 0 && first + kSize <= length) {}

  static __device__ __forceinline__ bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % sizeof(Vector) == 0;
  }
  // How many elements before `row` the last boundary of a vector is.
  static __device__ __forceinline__ int elements_past_boundary(const T* row) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(row) % sizeof(Vector) / sizeof(T));
  }
  // Tiles that cover a row wherever its first boundary is.
  static __host__ __device__ __forceinline__ int64_t tiles(int64_t length) {
    return (length + kVector - 1 + kSize - 1) / kSize;
  }

  // Which element of the row is the lane's e-th.
  __device__ __forceinline__ int64_t at(int e) const {
    return first + (vectors ? (e / kVector * 32 + lane) * kVector + e % kVector : e * 32 + lane);
  }
  __device__ __forceinline__ bool has(int e) const { return vectors || (at(e) >= 0 && at(e) < length); }

  // Zero outside.
  __device__ __forceinline__ void load_vectors(const T* row, acc_t (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i += kVector) {
      const Vector vector = arch::load_global<Vector>(row + at(i));
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[i + j] = arch::widen(vector.v[j]);
    }
  }
  __device__ __forceinline__ void load_elements(const T* row, acc_t (&to)[N]) const {
#pragma unroll
    for (int e = 0; e < N; ++e) to[e] = has(e) ? arch::widen(arch::load_global<T>(row + at(e))) : acc_t(0);
  }
  __device__ __forceinline__ void load(const T* row, acc_t (&to)[N]) const {
    if (vectors) {
      load_vectors(row, to);
    } else {
      load_elements(row, to);
    }
  }
  // For a row whose alignment is not known: the mask's. Ones where there is none.
  __device__ __forceinline__ void load_mask(const T* row, acc_t (&to)[N]) const {
    if (!row) {
#pragma unroll
      for (int e = 0; e < N; ++e) to[e] = 1;
    } else if (vectors && is_aligned(row + first)) {
      load_vectors(row, to);
    } else {
      load_elements(row, to);
    }
  }

  __device__ __forceinline__ void store(T* row, const acc_t (&from)[N]) const {
    if (vectors) {
#pragma unroll
      for (int i = 0; i < N; i += kVector) {
        Vector vector;
#pragma unroll
        for (int j = 0; j < kVector; ++j) vector.v[j] = arch::narrow<T>(from[i + j]);
        arch::store_global<Vector>(row + at(i), vector);
      }
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (has(e)) arch::store_global<T>(row + at(e), arch::narrow<T>(from[e]));
      }
    }
  }

  // Rows `stride` apart; those from `count` on are zero.
  template <int ROWS>
  __device__ __forceinline__ void load_rows(const T* rows, int64_t stride, int count, acc_t (&to)[ROWS][N]) const {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int e = 0; e < N; ++e) to[r][e] = 0;
    }
    if (vectors) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (r < count) load_vectors(rows + r * stride, to[r]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (r < count) load_elements(rows + r * stride, to[r]);
      }
    }
  }
};

// Operations on single elements: a lane takes 32 bytes of every array, two accesses in flight for each.
template <class T>
using ElementTile = LaneTile<T, 32 / sizeof(T)>;

constexpr int kRowThreads = 128;  // small blocks: nothing in them waits for the others

// Which tile of which row is this warp's, after `skipped` blocks that do something else.
struct WarpItem {
  uint32_t row, tile;

  __device__ __forceinline__ WarpItem(int64_t tiles, unsigned skipped = 0) {
    const uint32_t index = (blockIdx.x - skipped) * (blockDim.x / 32) + threadIdx.x / 32;
    row = index / static_cast<uint32_t>(tiles);
    tile = index % static_cast<uint32_t>(tiles);
  }
};

// The grid for `items` of which each block takes `per_block`, after `skipped` blocks that do something else.
inline arch::Grid grid_of(int64_t items, int per_block, int64_t skipped = 0) {
  const int64_t blocks = (items + per_block - 1) / per_block + skipped;
  if (blocks * per_block > INT32_MAX) throw std::invalid_argument("the tensors have too many rows for one launch");
  return {static_cast<unsigned>(blocks), 1, 1};
}

// shuffle_xor for wider types, too.
__device__ __forceinline__ float exchange(float v, int mask) { return arch::shuffle_xor(v, mask); }
__device__ __forceinline__ double exchange(double v, int mask) {
  uint32_t parts[2];
  __builtin_memcpy(parts, &v, 8);
  parts[0] = arch::shuffle_xor(parts[0], mask);
  parts[1] = arch::shuffle_xor(parts[1], mask);
  __builtin_memcpy(&v, parts, 8);
  return v;
}

// Sums each of COUNT values over the warp, with one exchange for two values: a lane hands half of its values to its
// partner and adds what it gets to the other half. In the end v[i] is the sum of value warp_sums_index<COUNT>() + i,
// for i < COUNT / 32 or i = 0.
template <int COUNT, int MASK = 16, class V, int SIZE>
__device__ __forceinline__ void warp_sums(V (&v)[SIZE]) {
  if constexpr (COUNT > 1) {
    constexpr int half = COUNT / 2;
    static_assert(COUNT % 2 == 0);
    const bool upper = threadIdx.x & MASK;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const V given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + exchange(given, MASK);
    }
  } else {
    v[0] += exchange(v[0], MASK);
  }
  if constexpr (MASK > 1) warp_sums<(COUNT > 1 ? COUNT / 2 : 1), MASK / 2>(v);
}

template <int COUNT>
__device__ __forceinline__ int warp_sums_index() {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (COUNT >= 32) {
    return lane * (COUNT / 32);
  } else {
    return lane / (32 / COUNT);
  }
}

// The sum over the block in every thread, always in the same order. `scratch`: 8 bytes for each warp; the block must
// not use it before or after without a barrier.
__device__ __forceinline__ double block_sum(double v, arch::shared_t scratch) {
  v = arch::warp_sum(v);
  if (threadIdx.x % 32 == 0) arch::store_shared<double>(scratch + threadIdx.x / 32 * 8, v);
  arch::sync_threads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += arch::load_shared<double>(scratch + warp * 8);
  arch::sync_threads();
  return sum;
}

// Sum over i < count of f(i), by the block.
template <class F>
__device__ __forceinline__ double block_sum_of(int64_t count, arch::shared_t scratch, const F& f) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += static_cast<double>(f(i));
  return block_sum(sum, scratch);
}

// How many steps a batch entry has: T, or the sum of its mask's row.
template <class T>
__device__ __forceinline__ double block_steps(const T* mask_row, int64_t time, arch::shared_t scratch) {
  if (!mask_row) return static_cast<double>(time);
  return block_sum_of(time, scratch, [&](int64_t t) { return arch::widen(arch::load_global<T>(mask_row + t)); });
}

// out[b] = sum of parts[b, :]. One block for each b.
template <class A>
__global__ void __launch_bounds__(256) sum_parts_kernel(const SumPartsParams<A> p) {
  const double* parts = p.parts + blockIdx.x * p.count;
  const double sum =
      block_sum_of(p.count, arch::shared_memory(), [&](int64_t i) { return arch::load_global<double>(parts + i); });
  if (threadIdx.x == 0) arch::store_global<A>(p.out + blockIdx.x, static_cast<A>(sum));
}

template <class A>
void launch_sum_parts(const SumPartsParams<A>& p, arch::Stream stream) {
  constexpr int threads = 256;
  const arch::Launch how = {grid_of(p.batch, 1), threads, threads / 32 * 8};
  arch::launch(sum_parts_kernel<A>, p, how, stream);
}

}  // namespace fastflow
