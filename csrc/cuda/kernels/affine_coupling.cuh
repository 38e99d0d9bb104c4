// The affine coupling and its gradients, element by element; the log-determinant is summed along the way: a warp's
// tile gives one part, and a second kernel adds the parts in a fixed order.
#pragma once

#include "lane_tile.cuh"

namespace fastflow {

// One element of the coupling.
template <class A>
struct Coupling {
  A log_scale = 0;  // s: logarithm of what the element is multiplied by, forward
  A scale = 1;      // exp(s), in reverse exp(-s)

  // `raw`: the log scale as the network gives it; unused by the additive form.
  __device__ __forceinline__ Coupling(CouplingForm form, bool reverse, A raw) {
    if (form == CouplingForm::kExp) {
      log_scale = raw;
      scale = arch::exp(reverse ? -raw : raw);
    } else if (form == CouplingForm::kSigmoid) {
      const A v = raw + A(2);
      const A inverse = A(1) + arch::exp(-v);
      scale = reverse ? inverse : A(1) / inverse;
      // log(sigmoid(v)), accurate also where it is next to nothing
      log_scale = (v < A(0) ? v : A(0)) - arch::log1p(arch::exp(-arch::abs(v)));
    }
  }

  __device__ __forceinline__ A value(CouplingForm form, bool reverse, A x, A shift) const {
    if (form == CouplingForm::kSigmoid) return reverse ? x * scale - shift : (x + shift) * scale;
    return reverse ? (x - shift) * scale : x * scale + shift;
  }
};

template <class T>
__global__ void __launch_bounds__(kRowThreads) affine_coupling_kernel(const AffineCouplingParams<T> p) {
  using Tile = ElementTile<T>;
  using acc_t = accumulator_t<T>;
  constexpr int count = 32 / sizeof(T);
  const int64_t tiles = Tile::tiles(p.time);
  const WarpItem item(tiles);
  if (item.row >= p.batch * p.channels) return;
  const uint32_t b = item.row / static_cast<uint32_t>(p.channels);
  const int64_t c = item.row - b * p.channels;
  const bool additive = p.form == CouplingForm::kAdditive;
  const T* x = p.x + b * p.x_batch + c * p.time;                                             // [T], as all of these
  const T* shift = p.shift + b * p.shift_batch + c * p.time;                                 //
  const T* log_scale = additive ? shift : p.log_scale + b * p.log_scale_batch + c * p.time;  //
  T* y = p.y + item.row * p.time;                                                            //
  const int64_t first = static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(y);
  const Tile tile(
      first, p.time,
      Tile::is_aligned(x + first) && Tile::is_aligned(shift + first) && Tile::is_aligned(log_scale + first));
  acc_t xs[count], shifts[count], logs[count] = {}, mask[count];
  tile.load(x, xs);
  tile.load(shift, shifts);
  if (!additive) tile.load(log_scale, logs);
  tile.load_mask(p.mask ? p.mask + b * p.mask_batch : nullptr, mask);
  acc_t lane_sum = 0;  // of few elements; the sums of many are in float64
#pragma unroll
  for (int e = 0; e < count; ++e) {
    const Coupling<acc_t> coupling(p.form, p.reverse, logs[e]);
    xs[e] = coupling.value(p.form, p.reverse, xs[e], shifts[e]) * mask[e];
    if (tile.has(e)) lane_sum += coupling.log_scale * mask[e];
  }
  tile.store(y, xs);
  if (!p.row_log_det) return;
  const double sum = arch::warp_sum(static_cast<double>(lane_sum));
  if (tile.lane == 0) {
    arch::store_global<double>(p.row_log_det + item.row * tiles + item.tile, p.reverse ? -sum : sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    affine_coupling_backward_kernel(const AffineCouplingBackwardParams<T> params) {
  using Tile = ElementTile<T>;
  using acc_t = accumulator_t<T>;
  constexpr int count = 32 / sizeof(T);
  const AffineCouplingParams<T>& p = params.forward;
  const WarpItem item(Tile::tiles(p.time));
  if (item.row >= p.batch * p.channels) return;
  const uint32_t b = item.row / static_cast<uint32_t>(p.channels);
  const int64_t c = item.row - b * p.channels;
  const bool additive = p.form == CouplingForm::kAdditive;
  const T* grad = params.grad + b * params.grad_batch + c * p.time;  // [T], as all of these
  // The additive form needs none of the others.
  const T* x = additive ? grad : p.x + b * p.x_batch + c * p.time;
  const T* shift = additive ? grad : p.shift + b * p.shift_batch + c * p.time;
  const T* log_scale = additive ? grad : p.log_scale + b * p.log_scale_batch + c * p.time;
  const int64_t first =
      static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(params.grad_x + item.row * p.time);
  const Tile tile(
      first, p.time,
      Tile::is_aligned(grad + first) && Tile::is_aligned(x + first) && Tile::is_aligned(shift + first) &&
          Tile::is_aligned(log_scale + first));
  acc_t gs[count], xs[count] = {}, shifts[count] = {}, logs[count] = {}, mask[count];
  tile.load(grad, gs);
  if (!additive) {
    tile.load(x, xs);
    tile.load(shift, shifts);
    tile.load(log_scale, logs);
  }
  tile.load_mask(p.mask ? p.mask + b * p.mask_batch : nullptr, mask);
  const acc_t grad_log_det = arch::load_global<acc_t>(params.grad_log_det + b);
#pragma unroll
  for (int e = 0; e < count; ++e) {
    const Coupling<acc_t> coupling(p.form, p.reverse, logs[e]);
    const acc_t g = gs[e] * mask[e];
    const acc_t grad_x = g * coupling.scale;
    // what s multiplies in y, and the shift's gradient
    acc_t scaled = xs[e] * coupling.scale, grad_shift;
    if (p.form == CouplingForm::kSigmoid) {
      if (!p.reverse) scaled += shifts[e] * coupling.scale;
      grad_shift = p.reverse ? -g : grad_x;
    } else {
      if (p.reverse) scaled -= shifts[e] * coupling.scale;
      grad_shift = p.reverse ? -grad_x : g;
    }
    acc_t grad_s = g * scaled + grad_log_det * mask[e];
    if (p.reverse) grad_s = -grad_s;
    if (p.form == CouplingForm::kSigmoid) grad_s *= acc_t(1) / (acc_t(1) + arch::exp(logs[e] + acc_t(2)));
    gs[e] = grad_x;
    shifts[e] = grad_shift;
    logs[e] = grad_s;
  }
  tile.store(params.grad_x + item.row * p.time, gs);
  tile.store(params.grad_shift + item.row * p.time, shifts);
  if (!additive) tile.store(params.grad_log_scale + item.row * p.time, logs);
}

template <class T>
int64_t affine_coupling_parts(int64_t time) {
  return ElementTile<T>::tiles(time);
}

template <class T>
void launch_affine_coupling(const AffineCouplingParams<T>& p, accumulator_t<T>* log_det, arch::Stream stream) {
  const int64_t parts = p.channels * affine_coupling_parts<T>(p.time);
  const arch::Launch how = {grid_of(p.batch * parts, kRowThreads / 32), kRowThreads, 0};
  arch::launch(affine_coupling_kernel<T>, p, how, stream);
  if (p.row_log_det) {
    launch_sum_parts(SumPartsParams<accumulator_t<T>>{p.row_log_det, log_det, p.batch, parts}, stream);
  } else {
    arch::zero_async(log_det, p.batch * sizeof(accumulator_t<T>), stream);
  }
}

template <class T>
void launch_affine_coupling_backward(const AffineCouplingBackwardParams<T>& p, arch::Stream stream) {
  const int64_t items = p.forward.batch * p.forward.channels * ElementTile<T>::tiles(p.forward.time);
  const arch::Launch how = {grid_of(items, kRowThreads / 32), kRowThreads, 0};
  arch::launch(affine_coupling_backward_kernel<T>, p, how, stream);
}

}  // namespace fastflow
