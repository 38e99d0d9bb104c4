#include "ops.h"

namespace fastflow {
namespace {

template <class T>
Tensor launch(const Tensor& x, const Tensor& weight, const OptionalTensor& mask) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_weight = Dense<T>::whole(weight, "weight");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const InvConv1x1Params<T> params = {dense_x.data,   dense_weight.data, dense_mask.data,
                                      writable<T>(y), dense_x.batch,     dense_mask.batch,
                                      batch,          channels,          time};
  const int64_t tasks = batch * kernels<T>().invconv1x1_tiles(params);
  if (tasks > 0) parallel_rows(kernels<T>().invconv1x1, params, tasks, batch * time * channels * channels / tasks);
  return y;
}

}  // namespace

Tensor invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(weight, "weight", "[C, C]", {x.size(1), x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return dispatch(x, "x", [&](auto type) { return launch<decltype(type)>(x, weight, mask); });
}

}  // namespace fastflow
