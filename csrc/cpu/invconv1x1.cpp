#include <algorithm>

#include "log_det.h"
#include "ops.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto wide_weight = dense_weight<T>(weight, "weight");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  InvConv1x1Params<T> params = {};
  params.x = dense_x.data;
  params.mask = dense_mask.data;
  params.y = writable<T>(y);
  params.x_batch = dense_x.batch;
  params.mask_batch = dense_mask.batch;
  params.batch = batch;
  params.channels = channels;
  params.time = time;
  const Kernels<T>& k = kernels<T>();
  const int64_t tasks = batch * k.invconv1x1_tiles(params);
  if (tasks > 0) {
    const int64_t products = batch * time * channels * channels / tasks;
    torch::stable::parallel_for(0, tasks, kProductGrain / (products + 1) + 1, [&](int64_t begin, int64_t end) {
      k.invconv1x1(params, begin, end, wide_weight.data);
    });
  }
  if (!log_det) return {y, empty_of(x, {0}, scalar_type_of<accumulator_t<T>>)};
  std::vector<int64_t> pivots(static_cast<size_t>(channels));
  std::vector<double> matrix(wide_weight.data, wide_weight.data + channels * channels);
  return {y, log_det_of_steps(x, dense_mask, k.log_abs_det(matrix.data(), channels, pivots.data()))};
}

}  // namespace

std::tuple<Tensor, Tensor> invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(weight, "weight", "[C, C]", {x.size(1), x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return dispatch_with_bfloat16(x, "x", [&](auto type) { return launch<decltype(type)>(x, weight, mask, log_det); });
}

}  // namespace fastflow
