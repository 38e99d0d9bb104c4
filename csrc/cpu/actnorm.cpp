#include <cmath>

#include "log_det.h"
#include "ops.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask, bool reverse) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_loc = Dense<T>::whole(loc, "loc");
  const auto dense_scale = Dense<T>::whole(scale, "scale");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const ActNormParams<T> params = {dense_x.data,   dense_loc.data, dense_scale.data, dense_mask.data,
                                   writable<T>(y), dense_x.batch,  dense_mask.batch, batch,
                                   channels,       time,           reverse};
  parallel_rows(kernels<T>().actnorm, params, batch * channels, time);

  double per_step = 0;
  for (int64_t c = 0; c < channels; ++c)
    per_step += std::log(std::abs(static_cast<double>(widen(dense_scale.data[c]))));
  return {y, log_det_of_steps(x, dense_mask, reverse ? -per_step : per_step)};
}

template <class T>
std::vector<Tensor> launch_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& loc, const Tensor& scale,
    const OptionalTensor& mask, bool reverse) {
  const auto dense_grad = Dense<T>::batched(grad, "grad");
  const auto dense_grad_log_det = Dense<T>::whole(grad_log_det, "grad_log_det");
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_loc = Dense<T>::whole(loc, "loc");
  const auto dense_scale = Dense<T>::whole(scale, "scale");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor grad_x = empty_like_shape(x, {batch, channels, time});
  const Tensor grad_loc = empty_like_shape(x, {channels}), grad_scale = empty_like_shape(x, {channels});
  std::vector<double> parts(static_cast<size_t>(2 * batch * channels), 0.0);
  ActNormBackwardParams<T> params = {};
  params.forward = {dense_x.data, dense_loc.data, dense_scale.data, dense_mask.data,
                    nullptr,      dense_x.batch,  dense_mask.batch, batch,
                    channels,     time,           reverse};
  params.grad = dense_grad.data;
  params.grad_x = writable<T>(grad_x);
  params.parts = parts.data();
  params.grad_batch = dense_grad.batch;
  parallel_rows(kernels<T>().actnorm_backward, params, batch * channels, time);

  double from_log_det = 0;  // the gradient of every channel's log |scale|
  for (int64_t b = 0; b < batch; ++b) from_log_det += dense_grad_log_det.data[b] * steps_of(dense_mask, b, time);
  for (int64_t c = 0; c < channels; ++c) {
    double sums[2] = {0, (reverse ? -from_log_det : from_log_det) / dense_scale.data[c]};
    for (int64_t row = c; row < batch * channels; row += channels)
      for (int64_t i = 0; i < 2; ++i) sums[i] += parts[static_cast<size_t>(2 * row + i)];
    writable<T>(grad_loc)[c] = static_cast<T>(sums[0]);
    writable<T>(grad_scale)[c] = static_cast<T>(sums[1]);
  }
  return {grad_x, grad_loc, grad_scale};
}

void check_actnorm(const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(loc, "loc", "[C]", {x.size(1)});
  check_shape(scale, "scale", "[C]", {x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
}

}  // namespace

std::tuple<Tensor, Tensor> actnorm(
    const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask, bool reverse) {
  check_actnorm(x, loc, scale, mask);
  return dispatch_with_bfloat16(
      x, "x", [&](auto type) { return launch<decltype(type)>(x, loc, scale, mask, reverse); });
}

std::vector<Tensor> actnorm_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& loc, const Tensor& scale,
    const OptionalTensor& mask, bool reverse) {
  check_actnorm(x, loc, scale, mask);
  check_shape(grad, "grad", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  check_shape(grad_log_det, "grad_log_det", "[B]", {x.size(0)});
  return dispatch(x, "x", [&](auto type) {
    return launch_backward<decltype(type)>(grad, grad_log_det, x, loc, scale, mask, reverse);
  });
}

}  // namespace fastflow
