// The invertible 1x1 convolution: a [C, C] matrix times x [C, T] of each batch entry, and the gradients.
//
// Up to 32 channels a lane holds all channels of its steps in registers, and the matrix is in shared memory: every byte
// of x and y moves once. Up to 8, the backward does both gradients in the same pass. Wider matrices go through a tiled
// product. The gradient of the weight is summed by blocks into parts, which a last kernel adds in a fixed order.
#pragma once

#include "../launch.h"
#include "elimination.cuh"
#include "lane_tile.cuh"

namespace fastflow {

constexpr int kInvConvNarrow = kInvConv1x1InShared;  // channels at most, of the kernels that keep them in registers
constexpr int kInvConvFused = 8;  // channels at most, of the backward in one pass: 64 sums in registers

// The element of the matrix that is multiplied: of the weight or of its transpose.
template <class T>
__device__ __forceinline__ accumulator_t<T> invconv1x1_weight(
    const InvConv1x1ForwardParams<T>& p, int i, int j, bool transposed) {
  const int64_t at = transposed ? j * p.op.channels + i : i * p.op.channels + j;
  if (p.weight_is_wide) {
    return arch::load_global<accumulator_t<T>>(static_cast<const accumulator_t<T>*>(p.weight) + at);
  }
  return arch::widen(arch::load_global<T>(static_cast<const T*>(p.weight) + at));
}

// Shared memory of the blocks that do not multiply: for block_sum, elimination, and a narrow matrix.
constexpr int kSideScratch = 256 / 32 * 8;
inline int invconv1x1_side_bytes(int64_t channels) {
  const int size = static_cast<int>(channels);
  const int aligned = (elimination_bytes(size) + 7) / 8 * 8;
  return kSideScratch + aligned + (size <= kInvConvNarrow ? size * size * 8 : 0);
}

template <class T>
__device__ __forceinline__ SquareMatrix invconv1x1_side_matrix(const InvConv1x1ForwardParams<T>& p) {
  const int size = static_cast<int>(p.op.channels);
  const arch::shared_t shared = arch::shared_memory() + kSideScratch + (elimination_bytes(size) + 7) / 8 * 8;
  const SquareMatrix a = {size <= kInvConvNarrow ? nullptr : p.matrix, shared, size};
  a.for_each([&](int i, int j) { a.store(i, j, static_cast<double>(invconv1x1_weight(p, i, j, false))); });
  arch::sync_threads();
  return a;
}

// log |det W| times the steps of each batch entry, by the first `blocks` blocks of a launch while the others multiply.
template <class T>
__device__ __forceinline__ void invconv1x1_log_det(const InvConv1x1ForwardParams<T>& p, unsigned blocks) {
  const arch::shared_t scratch = arch::shared_memory();
  const double per_step = eliminate<false>(invconv1x1_side_matrix(p), scratch + kSideScratch);
  for (int64_t b = blockIdx.x; b < p.op.batch; b += blocks) {
    const T* mask = p.op.mask ? p.op.mask + b * p.op.mask_batch : nullptr;
    const double steps = block_steps(mask, p.op.time, scratch);
    if (threadIdx.x == 0) {
      using acc_t = accumulator_t<T>;
      arch::store_global<acc_t>(p.log_det + b, static_cast<acc_t>(per_step * steps));
    }
  }
}

template <class T>
__host__ __device__ __forceinline__ unsigned invconv1x1_log_det_blocks(const InvConv1x1ForwardParams<T>& p) {
  if (!p.log_det) return 0;
  return p.op.channels <= kInvConvNarrow ? static_cast<unsigned>(p.op.batch) : 1;  // one `matrix` to work in
}

// For the weight's gradient: block 0 inverts, blocks 1 to B count the steps of a batch entry each.
template <class T>
__device__ __forceinline__ void invconv1x1_backward_side(const InvConv1x1BackwardParams<T>& params) {
  const InvConv1x1Params<T>& p = params.forward.op;
  const arch::shared_t scratch = arch::shared_memory();
  if (blockIdx.x == 0) {
    const SquareMatrix a = invconv1x1_side_matrix(params.forward);
    eliminate<true>(a, scratch + kSideScratch);
    a.for_each([&](int i, int k) {
      const int64_t at = i * p.channels + elimination_column(scratch + kSideScratch, k);
      arch::store_global<double>(params.inverse + at, a.load(i, k));
    });
  } else {
    const int64_t b = blockIdx.x - 1;
    const double steps = block_steps(p.mask ? p.mask + b * p.mask_batch : nullptr, p.time, scratch);
    if (threadIdx.x == 0) arch::store_global<double>(params.steps + b, steps);
  }
}

template <class T>
__host__ __device__ __forceinline__ unsigned invconv1x1_side_blocks(const InvConv1x1BackwardParams<T>& p) {
  return p.inverse ? 1 + static_cast<unsigned>(p.forward.op.batch) : 0;
}

// A [SIZE, SIZE] matrix in shared memory, zero beyond C.
template <class T, int SIZE>
struct InvConvMatrix {
  using acc_t = accumulator_t<T>;
  static constexpr int kBytes = SIZE * SIZE * static_cast<int>(sizeof(acc_t));
  static constexpr int kVector = 16 / sizeof(acc_t);
  struct alignas(16) Vector {
    acc_t v[kVector];
  };

  arch::shared_t address;

  // Followed by a barrier.
  __device__ __forceinline__ void fill(const InvConv1x1ForwardParams<T>& p, bool transposed) const {
    const int channels = static_cast<int>(p.op.channels);
    for (int at = static_cast<int>(threadIdx.x); at < SIZE * SIZE; at += static_cast<int>(blockDim.x)) {
      const int i = at / SIZE, j = at % SIZE;
      const acc_t v = i < channels && j < channels ? invconv1x1_weight(p, i, j, transposed) : acc_t(0);
      arch::store_shared<acc_t>(address + at * static_cast<int>(sizeof(acc_t)), v);
    }
  }

  // Row i times x.
  template <int N>
  __device__ __forceinline__ void multiply_row(int i, const acc_t (&x)[SIZE][N], acc_t (&sum)[N]) const {
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = 0;
#pragma unroll
    for (int j = 0; j < SIZE; j += kVector) {
      const Vector w = arch::load_shared<Vector>(address + (i * SIZE + j) * static_cast<int>(sizeof(acc_t)));
#pragma unroll
      for (int q = 0; q < kVector; ++q) {
#pragma unroll
        for (int e = 0; e < N; ++e) sum[e] += w.v[q] * x[j + q][e];
      }
    }
  }
};

// Steps of a lane that holds SIZE channels of each: 16 bytes of a channel, but no more than 128 registers in all.
template <class T, int SIZE>
struct InvConvNarrow {
  static constexpr int kVector = 16 / sizeof(T), kRoom = 128 / (SIZE * (sizeof(accumulator_t<T>) / 4));
  static constexpr int kCount = kVector < kRoom ? kVector : kRoom;
  using Tile = LaneTile<T, kCount>;
};

template <class T, int SIZE>
__global__ void __launch_bounds__(kRowThreads, 1) invconv1x1_kernel(const InvConv1x1ForwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  using Tile = typename InvConvNarrow<T, SIZE>::Tile;
  constexpr int count = InvConvNarrow<T, SIZE>::kCount;
  const InvConv1x1Params<T>& p = params.op;
  const unsigned side = invconv1x1_log_det_blocks(params);
  if (blockIdx.x < side) {
    invconv1x1_log_det(params, side);
    return;
  }
  const WarpItem item((p.time + Tile::kSize - 1) / Tile::kSize, side);
  const bool mine = item.row < p.batch;
  const int64_t b = mine ? item.row : 0;
  const T* x = p.x + b * p.x_batch;      // [C, T]
  T* y = p.y + b * p.channels * p.time;  // [C, T]
  const bool aligned = Tile::is_aligned(x) && Tile::is_aligned(y) && p.time % Tile::kVector == 0;
  const Tile tile(static_cast<int64_t>(item.tile) * Tile::kSize, p.time, aligned);
  const int channels = static_cast<int>(p.channels);
  acc_t xs[SIZE][count], mask[count];
  if (mine) {
    tile.load_rows(x, p.time, channels, xs);
    tile.load_mask(p.mask ? p.mask + b * p.mask_batch : nullptr, mask);
  }
  const InvConvMatrix<T, SIZE> weight = {arch::shared_memory()};
  weight.fill(params, params.transposed);
  arch::sync_threads();
  if (!mine) return;
  for (int i = 0; i < channels; ++i) {
    acc_t sum[count];
    weight.multiply_row(i, xs, sum);
#pragma unroll
    for (int e = 0; e < count; ++e) sum[e] *= mask[e];
    tile.store(y + i * p.time, sum);
  }
}

// y [64 channels, 64 steps] of a block: 4 x 4 of a thread, 16 channels of x at a time through shared memory.
struct InvConvWide {
  static constexpr int kThreads = 256, kTile = 64, kDepth = 16;
  static constexpr int kRow = kTile + 4;  // padded: the weight's writers go down a column
};

template <class T>
__global__ void __launch_bounds__(InvConvWide::kThreads)
    invconv1x1_wide_kernel(const InvConv1x1ForwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  using W = InvConvWide;
  constexpr int bytes = sizeof(acc_t);
  const InvConv1x1Params<T>& p = params.op;
  const unsigned side = invconv1x1_log_det_blocks(params);
  if (blockIdx.x < side) {
    invconv1x1_log_det(params, side);
    return;
  }
  const int channels = static_cast<int>(p.channels), thread = static_cast<int>(threadIdx.x);
  const unsigned row_tiles = (channels + W::kTile - 1) / W::kTile;
  const unsigned step_tiles = static_cast<unsigned>((p.time + W::kTile - 1) / W::kTile);
  const unsigned block = blockIdx.x - side;  // rows run fastest, so that x stays in the cache
  const int i0 = static_cast<int>(block % row_tiles) * W::kTile;
  const int64_t b = block / row_tiles / step_tiles,
                t0 = static_cast<int64_t>(block / row_tiles % step_tiles) * W::kTile;
  const T* x = p.x + b * p.x_batch;  // [C, T]
  const arch::shared_t weights = arch::shared_memory(), xs = weights + W::kDepth * W::kRow * bytes;
  const int own_row = thread / 16 * 4, own_step = thread % 16;  // rows own_row + i, steps own_step + 16 j
  acc_t sum[4][4] = {};
  for (int k0 = 0; k0 < channels; k0 += W::kDepth) {
#pragma unroll
    for (int at = thread; at < W::kDepth * W::kTile; at += W::kThreads) {
      const int k = at % W::kDepth, i = at / W::kDepth;
      const bool inside = k0 + k < channels && i0 + i < channels;
      const acc_t v = inside ? invconv1x1_weight(params, i0 + i, k0 + k, params.transposed) : acc_t(0);
      arch::store_shared<acc_t>(weights + (k * W::kRow + i) * bytes, v);
    }
#pragma unroll
    for (int at = thread; at < W::kDepth * W::kTile; at += W::kThreads) {
      const int k = at / W::kTile, t = at % W::kTile;
      const bool inside = k0 + k < channels && t0 + t < p.time;
      const acc_t v = inside ? arch::widen(arch::load_global<T>(x + (k0 + k) * p.time + t0 + t)) : acc_t(0);
      arch::store_shared<acc_t>(xs + (k * W::kRow + t) * bytes, v);
    }
    arch::sync_threads();
#pragma unroll
    for (int k = 0; k < W::kDepth; ++k) {
      acc_t w[4], v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = arch::load_shared<acc_t>(weights + (k * W::kRow + own_row + i) * bytes);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = arch::load_shared<acc_t>(xs + (k * W::kRow + own_step + 16 * j) * bytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += w[i] * v[j];
      }
    }
    arch::sync_threads();
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t t = t0 + own_step + 16 * j;
    if (t >= p.time) continue;
    const acc_t mask = p.mask ? arch::widen(arch::load_global<T>(p.mask + b * p.mask_batch + t)) : acc_t(1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i0 + own_row + i;
      T* y = p.y + (b * p.channels + row) * p.time + t;
      if (row < channels) arch::store_global<T>(y, arch::narrow<T>(sum[i][j] * mask));
    }
  }
}

// Both gradients of up to 8 channels in one pass over grad and x.
template <class T, int SIZE>
struct InvConvFused {
  static_assert(SIZE <= kInvConvFused);
  static constexpr int kMost = SIZE == 4 ? 8 : 4;  // what the 2 SIZE channels and SIZE^2 sums leave room for
  static constexpr int kCount = 16 / sizeof(T) < kMost ? 16 / sizeof(T) : kMost;
  using Tile = LaneTile<T, kCount>;
  static constexpr int kWarps = kRowThreads / 32;
  static constexpr int kBytes = (1 + kWarps) * InvConvMatrix<T, SIZE>::kBytes;
};

template <class T, int SIZE>
__global__ void __launch_bounds__(kRowThreads) invconv1x1_backward_kernel(const InvConv1x1BackwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  using Fused = InvConvFused<T, SIZE>;
  using Tile = typename Fused::Tile;
  constexpr int count = Fused::kCount;
  const InvConv1x1Params<T>& p = params.forward.op;
  const unsigned side = invconv1x1_side_blocks(params);
  if (blockIdx.x < side) {
    invconv1x1_backward_side(params);
    return;
  }
  const InvConvMatrix<T, SIZE> transposed = {arch::shared_memory()};
  transposed.fill(params.forward, true);
  arch::sync_threads();

  const int channels = static_cast<int>(p.channels), warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t tiles = static_cast<uint32_t>((p.time + Tile::kSize - 1) / Tile::kSize);
  const uint32_t items = static_cast<uint32_t>(p.batch) * tiles;
  const unsigned block = blockIdx.x - side;
  acc_t products[SIZE * SIZE] = {};
  for (uint32_t item = block * Fused::kWarps + warp; item < items; item += (gridDim.x - side) * Fused::kWarps) {
    const int64_t b = item / tiles;
    const T* x = p.x + b * p.x_batch;                     // [C, T]
    const T* grad = params.grad + b * params.grad_batch;  // [C, T]
    T* grad_x = params.grad_x + b * channels * p.time;    // [C, T]
    const bool aligned =
        Tile::is_aligned(x) && Tile::is_aligned(grad) && Tile::is_aligned(grad_x) && p.time % Tile::kVector == 0;
    const Tile tile(static_cast<int64_t>(item % tiles) * Tile::kSize, p.time, aligned);
    acc_t gs[SIZE][count], xs[SIZE][count], mask[count];
    tile.load_rows(grad, p.time, channels, gs);
    tile.load_rows(x, p.time, channels, xs);
    if (p.mask) {
      tile.load_mask(p.mask + b * p.mask_batch, mask);
#pragma unroll
      for (int i = 0; i < SIZE; ++i) {
#pragma unroll
        for (int e = 0; e < count; ++e) gs[i][e] *= mask[e];
      }
    }
#pragma unroll
    for (int i = 0; i < SIZE; ++i) {
#pragma unroll
      for (int j = 0; j < SIZE; ++j) {
#pragma unroll
        for (int e = 0; e < count; ++e) products[i * SIZE + j] += gs[i][e] * xs[j][e];
      }
    }
    for (int j = 0; j < channels; ++j) {
      acc_t sum[count];
      transposed.multiply_row(j, gs, sum);
      tile.store(grad_x + j * p.time, sum);
    }
  }

  // The warps' sums, then the block's.
  constexpr int all = SIZE * SIZE, each = all >= 32 ? all / 32 : 1;
  const arch::shared_t sums = transposed.address + InvConvMatrix<T, SIZE>::kBytes;
  warp_sums<all>(products);
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int at = warp * all + warp_sums_index<all>() + i;
    // where there are fewer values than lanes, several lanes have the same
    if (all >= 32 || threadIdx.x % (32 / (all < 32 ? all : 32)) == 0) {
      arch::store_shared<acc_t>(sums + at * static_cast<int>(sizeof(acc_t)), products[i]);
    }
  }
  arch::sync_threads();
  for (int at = static_cast<int>(threadIdx.x); at < all; at += kRowThreads) {
    const int i = at / SIZE, j = at % SIZE;
    if (i >= channels || j >= channels) continue;
    acc_t sum = 0;
    for (int w = 0; w < Fused::kWarps; ++w) {
      sum += arch::load_shared<acc_t>(sums + (w * all + at) * static_cast<int>(sizeof(acc_t)));
    }
    arch::store_global<acc_t>(params.parts + (static_cast<int64_t>(block) * channels + i) * channels + j, sum);
  }
}

// grad_weight [32, 32] of a block, summed over its share of batch and time: 4 x 4 of a thread, 32 steps at a time.
struct InvConvWeightGradient {
  static constexpr int kThreads = 64, kTile = 32, kSteps = 32;
  static constexpr int kRow = kTile + 4;  // padded: writers go down a column
};

// Eight blocks to a multiprocessor at least: 128 registers to a thread.
template <class T>
__global__ void __launch_bounds__(InvConvWeightGradient::kThreads, 8)
    invconv1x1_weight_gradient_kernel(const InvConv1x1BackwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  using W = InvConvWeightGradient;
  struct alignas(16) Vector {
    acc_t v[16 / sizeof(acc_t)];
  };
  constexpr int bytes = sizeof(acc_t), unit = 16 / bytes;
  const InvConv1x1Params<T>& p = params.forward.op;
  const unsigned side = invconv1x1_side_blocks(params);
  if (blockIdx.x < side) {
    invconv1x1_backward_side(params);
    return;
  }
  const int channels = static_cast<int>(p.channels), thread = static_cast<int>(threadIdx.x);
  const unsigned tiles = (channels + W::kTile - 1) / W::kTile, block = blockIdx.x - side;
  const int i0 = static_cast<int>(block % tiles) * W::kTile, j0 = static_cast<int>(block / tiles % tiles) * W::kTile;
  const int64_t part = block / tiles / tiles;
  const int64_t pieces = (p.time + W::kSteps - 1) / W::kSteps;  // of a batch entry
  const arch::shared_t gs = arch::shared_memory(), xs = gs + W::kSteps * W::kRow * bytes;
  const int own_i = thread / 8 * 4, own_j = thread % 8 * 4;
  acc_t sum[4][4] = {};
  for (int64_t piece = part; piece < p.batch * pieces; piece += params.count) {
    const int64_t b = piece / pieces, t0 = piece % pieces * W::kSteps;
    const T* x = p.x + b * p.x_batch;                     // [C, T]
    const T* grad = params.grad + b * params.grad_batch;  // [C, T]
    const int t = thread % 32;
    const bool in_time = t0 + t < p.time;
    const acc_t mask =
        in_time && p.mask ? arch::widen(arch::load_global<T>(p.mask + b * p.mask_batch + t0 + t)) : acc_t(1);
#pragma unroll 8
    for (int row = thread / 32; row < W::kTile; row += W::kThreads / 32) {
      acc_t g = 0, v = 0;
      if (in_time && i0 + row < channels) {
        g = arch::widen(arch::load_global<T>(grad + (i0 + row) * p.time + t0 + t)) * mask;
      }
      if (in_time && j0 + row < channels) v = arch::widen(arch::load_global<T>(x + (j0 + row) * p.time + t0 + t));
      arch::store_shared<acc_t>(gs + (t * W::kRow + row) * bytes, g);
      arch::store_shared<acc_t>(xs + (t * W::kRow + row) * bytes, v);
    }
    arch::sync_threads();
#pragma unroll 4
    for (int k = 0; k < W::kSteps; ++k) {
      acc_t g[4], v[4];
#pragma unroll
      for (int i = 0; i < 4; i += unit) {
        const Vector g_vector = arch::load_shared<Vector>(gs + (k * W::kRow + own_i + i) * bytes);
        const Vector x_vector = arch::load_shared<Vector>(xs + (k * W::kRow + own_j + i) * bytes);
#pragma unroll
        for (int q = 0; q < unit; ++q) {
          g[i + q] = g_vector.v[q];
          v[i + q] = x_vector.v[q];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += g[i] * v[j];
      }
    }
    arch::sync_threads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = i0 + own_i + i, column = j0 + own_j + j;
      if (row < channels && column < channels) {
        arch::store_global<acc_t>(params.parts + (part * channels + row) * channels + column, sum[i][j]);
      }
    }
  }
}

// Adds the parts and the log-determinant's share. A block makes 32 elements, each warp an eighth of the parts.
template <class T>
__global__ void __launch_bounds__(256) invconv1x1_weight_sum_kernel(const InvConv1x1BackwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  const int64_t channels = params.forward.op.channels, elements = channels * channels;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const arch::shared_t sums = arch::shared_memory();  // [8, 32]
  double sum = 0;
  if (at < elements) {
#pragma unroll 8
    for (int64_t part = warp; part < params.count; part += 8) {
      sum += static_cast<double>(arch::load_global<acc_t>(params.parts + part * elements + at));
    }
  }
  arch::store_shared<double>(sums + (warp * 32 + lane) * 8, sum);
  arch::sync_threads();
  if (warp > 0) return;
  sum = 0;
  for (int w = 0; w < 8; ++w) sum += arch::load_shared<double>(sums + (w * 32 + lane) * 8);
  if (params.inverse) {
    double grad_log = 0;
    for (int64_t b = lane; b < params.forward.op.batch; b += 32) {
      grad_log += static_cast<double>(arch::load_global<acc_t>(params.grad_log_det + b)) *
                  arch::load_global<double>(params.steps + b);
    }
    grad_log = arch::warp_sum(grad_log);
    if (at < elements) {
      sum += grad_log * arch::load_global<double>(params.inverse + at % channels * channels + at / channels);
    }
  }
  if (at >= elements) return;
  if (params.forward.weight_is_wide) {
    arch::store_global<acc_t>(static_cast<acc_t*>(params.grad_weight) + at, static_cast<acc_t>(sum));
  } else {
    arch::store_global<T>(static_cast<T*>(params.grad_weight) + at, arch::narrow<T>(static_cast<acc_t>(sum)));
  }
}

template <class T, int SIZE>
void launch_invconv1x1_narrow(const InvConv1x1ForwardParams<T>& p, arch::Stream stream) {
  constexpr int tile = InvConvNarrow<T, SIZE>::Tile::kSize, bytes = InvConvMatrix<T, SIZE>::kBytes;
  const int64_t items = p.op.batch * ((p.op.time + tile - 1) / tile);
  const int side_bytes = p.log_det ? invconv1x1_side_bytes(p.op.channels) : 0;
  const arch::Launch how = {
      grid_of(items, kRowThreads / 32, invconv1x1_log_det_blocks(p)), kRowThreads,
      side_bytes > bytes ? side_bytes : bytes};
  arch::launch(invconv1x1_kernel<T, SIZE>, p, how, stream);
}

template <class T>
void launch_invconv1x1(const InvConv1x1ForwardParams<T>& p, arch::Stream stream) {
  if (p.op.channels <= 4) {
    launch_invconv1x1_narrow<T, 4>(p, stream);
  } else if (p.op.channels <= 8) {
    launch_invconv1x1_narrow<T, 8>(p, stream);
  } else if (p.op.channels <= 16) {
    launch_invconv1x1_narrow<T, 16>(p, stream);
  } else if (p.op.channels <= kInvConvNarrow) {
    launch_invconv1x1_narrow<T, kInvConvNarrow>(p, stream);
  } else {
    using W = InvConvWide;
    const auto tiles = [](int64_t size) { return (size + W::kTile - 1) / W::kTile; };
    const int64_t blocks = p.op.batch * tiles(p.op.time) * tiles(p.op.channels);
    const int bytes = 2 * W::kDepth * W::kRow * static_cast<int>(sizeof(accumulator_t<T>));
    const int side_bytes = p.log_det ? invconv1x1_side_bytes(p.op.channels) : 0;
    const arch::Launch how = {
        grid_of(blocks, 1, invconv1x1_log_det_blocks(p)), W::kThreads, side_bytes > bytes ? side_bytes : bytes};
    arch::launch(invconv1x1_wide_kernel<T>, p, how, stream);
  }
}

// How many parts the gradient of the weight is summed in: two blocks' worth for each multiprocessor, or as many as
// there is work for.
template <class T>
int64_t invconv1x1_parts(int64_t batch, int64_t channels, int64_t time, const arch::Device& device) {
  int64_t most, wanted;
  if (channels <= kInvConvFused) {
    const int64_t tile = channels <= 4 ? InvConvFused<T, 4>::Tile::kSize : InvConvFused<T, 8>::Tile::kSize;
    most = (batch * ((time + tile - 1) / tile) + kRowThreads / 32 - 1) / (kRowThreads / 32);
    wanted = 2 * device.multiprocessors;
  } else {
    using W = InvConvWeightGradient;
    const int64_t tiles = (channels + W::kTile - 1) / W::kTile;
    most = batch * ((time + W::kSteps - 1) / W::kSteps);
    wanted = 8 * device.multiprocessors / (tiles * tiles);  // of two warps
  }
  const int64_t parts = wanted < most ? wanted : most;
  return parts > 1 ? parts : 1;
}

template <class T, int SIZE>
void launch_invconv1x1_fused_backward(const InvConv1x1BackwardParams<T>& p, arch::Stream stream) {
  const int side_bytes = p.inverse ? invconv1x1_side_bytes(p.forward.op.channels) : 0;
  constexpr int bytes = InvConvFused<T, SIZE>::kBytes;
  const arch::Launch how = {
      grid_of(p.count, 1, invconv1x1_side_blocks(p)), kRowThreads, side_bytes > bytes ? side_bytes : bytes};
  arch::launch(invconv1x1_backward_kernel<T, SIZE>, p, how, stream);
}

template <class T>
void launch_invconv1x1_backward(const InvConv1x1BackwardParams<T>& p, arch::Stream stream) {
  const int64_t channels = p.forward.op.channels;
  if (channels <= 4) {
    launch_invconv1x1_fused_backward<T, 4>(p, stream);
  } else if (channels <= kInvConvFused) {
    launch_invconv1x1_fused_backward<T, kInvConvFused>(p, stream);
  } else {
    InvConv1x1ForwardParams<T> product = p.forward;
    product.op.x = p.grad;
    product.op.x_batch = p.grad_batch;
    product.op.y = p.grad_x;
    product.log_det = nullptr;
    product.transposed = true;
    launch_invconv1x1(product, stream);
    using W = InvConvWeightGradient;
    const int64_t tiles = (channels + W::kTile - 1) / W::kTile;
    const int bytes = 2 * W::kSteps * W::kRow * static_cast<int>(sizeof(accumulator_t<T>));
    const int side_bytes = p.inverse ? invconv1x1_side_bytes(channels) : 0;
    const arch::Launch how = {
        grid_of(p.count * tiles * tiles, 1, invconv1x1_side_blocks(p)), W::kThreads,
        side_bytes > bytes ? side_bytes : bytes};
    arch::launch(invconv1x1_weight_gradient_kernel<T>, p, how, stream);
  }
  const arch::Launch sum = {grid_of(channels * channels, 32), 256, 256 * 8};
  arch::launch(invconv1x1_weight_sum_kernel<T>, p, sum, stream);
}

}  // namespace fastflow
