// Activation normalisation and its gradients. A warp's tile lies in one channel. The first B blocks of a launch count
// the steps of one batch entry each, for the log-determinant, while the others work.
#pragma once

#include "lane_tile.cuh"

namespace fastflow {

template <class T>
__global__ void __launch_bounds__(kRowThreads) actnorm_kernel(const ActNormForwardParams<T> params) {
  using Tile = ElementTile<T>;
  using acc_t = accumulator_t<T>;
  constexpr int count = 32 / sizeof(T);
  const ActNormParams<T>& p = params.op;
  if (blockIdx.x < p.batch) {
    const arch::shared_t scratch = arch::shared_memory();
    const int64_t b = blockIdx.x;
    const double per_step = block_sum_of(p.channels, scratch, [&](int64_t c) {
      return arch::log(arch::abs(static_cast<double>(arch::widen(arch::load_global<T>(p.scale + c)))));
    });
    const double sum = per_step * block_steps(p.mask ? p.mask + b * p.mask_batch : nullptr, p.time, scratch);
    if (threadIdx.x == 0) arch::store_global<acc_t>(params.log_det + b, static_cast<acc_t>(p.reverse ? -sum : sum));
    return;
  }
  const WarpItem item(Tile::tiles(p.time), static_cast<unsigned>(p.batch));
  if (item.row >= p.batch * p.channels) return;
  const uint32_t b = item.row / static_cast<uint32_t>(p.channels);
  const int64_t c = item.row - b * p.channels;
  const T* x = p.x + b * p.x_batch + c * p.time;  // [T]
  T* y = p.y + item.row * p.time;                 // [T]
  const int64_t first = static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(y);
  const Tile tile(first, p.time, Tile::is_aligned(x + first));
  acc_t xs[count], mask[count];
  tile.load(x, xs);
  tile.load_mask(p.mask ? p.mask + b * p.mask_batch : nullptr, mask);
  const acc_t loc = arch::widen(arch::load_global<T>(p.loc + c));
  const acc_t scale = arch::widen(arch::load_global<T>(p.scale + c));
#pragma unroll
  for (int e = 0; e < count; ++e) xs[e] = (p.reverse ? xs[e] / scale - loc : scale * (xs[e] + loc)) * mask[e];
  tile.store(y, xs);
}

// The gradient of x, and each tile's part of two sums over batch and time: of grad, and of grad * x (forward: of
// grad * (x + loc)).
template <class T>
__global__ void __launch_bounds__(kRowThreads) actnorm_backward_kernel(const ActNormBackwardParams<T> params) {
  using Tile = ElementTile<T>;
  using acc_t = accumulator_t<T>;
  constexpr int count = 32 / sizeof(T);
  const ActNormParams<T>& p = params.forward;
  if (blockIdx.x < p.batch) {
    const int64_t b = blockIdx.x;
    const T* mask = p.mask ? p.mask + b * p.mask_batch : nullptr;
    const double steps = block_steps(mask, p.time, arch::shared_memory());
    if (threadIdx.x == 0) arch::store_global<double>(params.steps + b, steps);
    return;
  }
  const int64_t tiles = Tile::tiles(p.time);
  const WarpItem item(tiles, static_cast<unsigned>(p.batch));
  if (item.row >= p.batch * p.channels) return;
  const uint32_t b = item.row / static_cast<uint32_t>(p.channels);
  const int64_t c = item.row - b * p.channels;
  const T* x = p.x + b * p.x_batch + c * p.time;                     // [T]
  const T* grad = params.grad + b * params.grad_batch + c * p.time;  // [T]
  T* grad_x = params.grad_x + item.row * p.time;                     // [T]
  const int64_t first = static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(grad_x);
  const Tile tile(first, p.time, Tile::is_aligned(x + first) && Tile::is_aligned(grad + first));
  acc_t xs[count], gs[count], mask[count];
  tile.load(x, xs);
  tile.load(grad, gs);
  tile.load_mask(p.mask ? p.mask + b * p.mask_batch : nullptr, mask);
  const acc_t loc = p.reverse ? acc_t(0) : arch::widen(arch::load_global<T>(p.loc + c));
  const acc_t scale = arch::widen(arch::load_global<T>(p.scale + c));
  acc_t lane_grad = 0, lane_product = 0;  // of few elements; the sums of many are in float64
#pragma unroll
  for (int e = 0; e < count; ++e) {
    const acc_t g = gs[e] * mask[e];
    lane_grad += g;
    lane_product += g * (xs[e] + loc);
    gs[e] = p.reverse ? g / scale : g * scale;
  }
  tile.store(grad_x, gs);
  const double sum_grad = arch::warp_sum(static_cast<double>(lane_grad));
  const double sum_product = arch::warp_sum(static_cast<double>(lane_product));
  if (tile.lane == 0) {
    double* part = params.parts + 2 * ((c * p.batch + b) * tiles + item.tile);
    arch::store_global<double>(part, sum_grad);
    arch::store_global<double>(part + 1, sum_product);
  }
}

// Adds the parts: one block for each channel.
template <class T>
__global__ void __launch_bounds__(kRowThreads) actnorm_backward_sum_kernel(const ActNormBackwardParams<T> params) {
  using acc_t = accumulator_t<T>;
  const ActNormParams<T>& p = params.forward;
  const arch::shared_t scratch = arch::shared_memory();
  const int64_t c = blockIdx.x, count = p.batch * ElementTile<T>::tiles(p.time);
  const double* parts = params.parts + 2 * c * count;
  const double grad_log = block_sum_of(p.batch, scratch, [&](int64_t b) {
    return static_cast<double>(arch::load_global<acc_t>(params.grad_log_det + b)) *
           arch::load_global<double>(params.steps + b);
  });
  const double sum_grad =
      block_sum_of(count, scratch, [&](int64_t i) { return arch::load_global<double>(parts + 2 * i); });
  const double sum_product =
      block_sum_of(count, scratch, [&](int64_t i) { return arch::load_global<double>(parts + 2 * i + 1); });
  if (threadIdx.x > 0) return;
  const double scale = static_cast<double>(arch::widen(arch::load_global<T>(p.scale + c)));
  const double grad_loc = p.reverse ? -sum_grad : sum_grad * scale;
  const double grad_scale =
      p.reverse ? -grad_log / scale - sum_product / (scale * scale) : grad_log / scale + sum_product;
  arch::store_global<T>(params.grad_loc + c, arch::narrow<T>(static_cast<acc_t>(grad_loc)));
  arch::store_global<T>(params.grad_scale + c, arch::narrow<T>(static_cast<acc_t>(grad_scale)));
}

constexpr int kRowScratch = kRowThreads / 32 * 8;  // bytes of shared memory for block_sum

template <class T>
void launch_actnorm(const ActNormForwardParams<T>& p, arch::Stream stream) {
  const int64_t items = p.op.batch * p.op.channels * ElementTile<T>::tiles(p.op.time);
  const arch::Launch how = {grid_of(items, kRowThreads / 32, p.op.batch), kRowThreads, kRowScratch};
  arch::launch(actnorm_kernel<T>, p, how, stream);
}

template <class T>
int64_t actnorm_backward_parts(const ActNormParams<T>& p) {
  return 2 * p.channels * p.batch * ElementTile<T>::tiles(p.time);
}

template <class T>
void launch_actnorm_backward(const ActNormBackwardParams<T>& p, arch::Stream stream) {
  const int64_t items = p.forward.batch * p.forward.channels * ElementTile<T>::tiles(p.forward.time);
  const arch::Launch how = {grid_of(items, kRowThreads / 32, p.forward.batch), kRowThreads, kRowScratch};
  arch::launch(actnorm_backward_kernel<T>, p, how, stream);
  const arch::Launch sum = {grid_of(p.forward.channels, 1), kRowThreads, kRowScratch};
  arch::launch(actnorm_backward_sum_kernel<T>, p, sum, stream);
}

}  // namespace fastflow
