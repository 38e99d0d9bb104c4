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

}  // namespace

std::tuple<Tensor, Tensor> actnorm(
    const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask, bool reverse) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(loc, "loc", "[C]", {x.size(1)});
  check_shape(scale, "scale", "[C]", {x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return dispatch_with_bfloat16(
      x, "x", [&](auto type) { return launch<decltype(type)>(x, loc, scale, mask, reverse); });
}

}  // namespace fastflow
