#include "../flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

// The dense tensors of a coupling, for as long as its parameters are used.
template <class T>
struct Coupled {
  Dense<T> x, shift, log_scale, mask;
  AffineCouplingParams<T> params = {};

  Coupled(
      const Tensor& x_tensor, const Tensor& shift_tensor, const OptionalTensor& log_scale_tensor,
      const OptionalTensor& mask_tensor, CouplingForm form, bool reverse)
      : x(Dense<T>::batched(x_tensor, "x")),
        shift(Dense<T>::batched(shift_tensor, "shift")),
        log_scale(Dense<T>::batched(log_scale_tensor, "log_scale")),
        mask(Dense<T>::batched(mask_tensor, "mask")) {
    params.x = x.data;
    params.shift = shift.data;
    params.log_scale = log_scale.data;
    params.mask = mask.data;
    params.x_batch = x.batch;
    params.shift_batch = shift.batch;
    params.log_scale_batch = log_scale.batch;
    params.mask_batch = mask.batch;
    params.batch = x_tensor.size(0);
    params.channels = x_tensor.size(1);
    params.time = x_tensor.size(2);
    params.form = form;
    params.reverse = reverse;
  }
};

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    CouplingForm form, bool reverse) {
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const Tensor log_det = empty_of(x, {batch}, scalar_type_of<accumulator_t<T>>);
  std::vector<double> row_log_det(static_cast<size_t>(batch * channels), 0.0);

  Coupled<T> coupled(x, shift, log_scale, mask, form, reverse);
  coupled.params.y = writable<T>(y);
  coupled.params.row_log_det = row_log_det.data();
  parallel_rows(kernels<T>().affine_coupling, coupled.params, batch * channels, time);

  accumulator_t<T>* sums = writable<accumulator_t<T>>(log_det);
  for (int64_t b = 0; b < batch; ++b) {
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += row_log_det[static_cast<size_t>(b * channels + c)];
    sums[b] = static_cast<accumulator_t<T>>(sum);
  }
  return {y, log_det};
}

template <class T>
std::vector<Tensor> launch_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& shift,
    const OptionalTensor& log_scale, const OptionalTensor& mask, CouplingForm form, bool reverse) {
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const auto output = [&] { return empty_like_shape(x, {batch, channels, time}); };
  const Tensor grad_x = output(), grad_shift = output();
  const Tensor grad_log_scale = log_scale ? output() : empty_like_shape(x, {0});
  const Coupled<T> coupled(x, shift, log_scale, mask, form, reverse);
  const auto dense_grad = Dense<T>::batched(grad, "grad");
  const auto dense_grad_log_det = Dense<T>::whole(grad_log_det, "grad_log_det");
  const AffineCouplingBackwardParams<T> params = {
      coupled.params,      dense_grad.data,         dense_grad_log_det.data,
      writable<T>(grad_x), writable<T>(grad_shift), log_scale ? writable<T>(grad_log_scale) : nullptr,
      dense_grad.batch};
  parallel_rows(kernels<T>().affine_coupling_backward, params, batch * channels, time);
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace

std::tuple<Tensor, Tensor> affine_coupling(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    const std::string& form, bool reverse) {
  const CouplingForm parsed = check_coupling(x, shift, log_scale, mask, form);
  return dispatch_with_bfloat16(
      x, "x", [&](auto type) { return launch<decltype(type)>(x, shift, log_scale, mask, parsed, reverse); });
}

std::vector<Tensor> affine_coupling_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& shift,
    const OptionalTensor& log_scale, const OptionalTensor& mask, const std::string& form, bool reverse) {
  const CouplingForm parsed = check_coupling(x, shift, log_scale, mask, form);
  check_shape(grad, "grad", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  check_shape(grad_log_det, "grad_log_det", "[B]", {x.size(0)});
  return dispatch(x, "x", [&](auto type) {
    return launch_backward<decltype(type)>(grad, grad_log_det, x, shift, log_scale, mask, parsed, reverse);
  });
}

}  // namespace fastflow
