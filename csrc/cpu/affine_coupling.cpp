#include "../flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    CouplingForm form, bool reverse) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_shift = Dense<T>::batched(shift, "shift");
  const auto dense_log_scale = Dense<T>::batched(log_scale, "log_scale");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const Tensor log_det = empty_of(x, {batch}, scalar_type_of<accumulator_t<T>>);
  std::vector<double> row_log_det(static_cast<size_t>(batch * channels), 0.0);

  AffineCouplingParams<T> params = {};
  params.x = dense_x.data;
  params.shift = dense_shift.data;
  params.log_scale = dense_log_scale.data;
  params.mask = dense_mask.data;
  params.y = writable<T>(y);
  params.row_log_det = row_log_det.data();
  params.x_batch = dense_x.batch;
  params.shift_batch = dense_shift.batch;
  params.log_scale_batch = dense_log_scale.batch;
  params.mask_batch = dense_mask.batch;
  params.batch = batch;
  params.channels = channels;
  params.time = time;
  params.form = form;
  params.reverse = reverse;
  parallel_rows(kernels<T>().affine_coupling, params, batch * channels, time);

  accumulator_t<T>* sums = writable<accumulator_t<T>>(log_det);
  for (int64_t b = 0; b < batch; ++b) {
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += row_log_det[static_cast<size_t>(b * channels + c)];
    sums[b] = static_cast<accumulator_t<T>>(sum);
  }
  return {y, log_det};
}

}  // namespace

std::tuple<Tensor, Tensor> affine_coupling(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    const std::string& form, bool reverse) {
  const CouplingForm parsed = parse_coupling_form(form);
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(shift, "shift", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  FASTFLOW_CHECK(
      log_scale.has_value() == (parsed != CouplingForm::kAdditive),
      "`log_scale` must be given for the forms exp and sigmoid, and only for these; got form ", form,
      log_scale ? " with" : " without", " log_scale");
  if (log_scale) check_shape(*log_scale, "log_scale", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return dispatch_with_bfloat16(
      x, "x", [&](auto type) { return launch<decltype(type)>(x, shift, log_scale, mask, parsed, reverse); });
}

}  // namespace fastflow
