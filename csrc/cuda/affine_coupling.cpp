#include "flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

// Holds the dense tensors for as long as the parameters are used.
template <class T>
struct Coupled {
  Dense<T> x, shift, log_scale, mask;
  AffineCouplingParams<T> params = {};

  Coupled(
      const Tensor& x_tensor, const Tensor& shift_tensor, const OptionalTensor& log_scale_tensor,
      const OptionalTensor& mask_tensor, CouplingForm form, bool reverse)
      : x(Dense<T>::batched(x_tensor, "x", x_tensor)),
        shift(Dense<T>::batched(shift_tensor, "shift", x_tensor)),
        log_scale(Dense<T>::batched(log_scale_tensor, "log_scale", x_tensor)),
        mask(Dense<T>::batched(mask_tensor, "mask", x_tensor)) {
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
std::tuple<Tensor, Tensor> run(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    CouplingForm form, bool reverse) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_of(x, {batch, channels, time}, scalar_type_of<T>);
  if (y.numel() == 0) return {y, zeros_of<acc_t>(x, {batch}, on.stream())};
  const Tensor log_det = empty_of(x, {batch}, scalar_type_of<acc_t>);
  Coupled<T> coupled(x, shift, log_scale, mask, form, reverse);
  coupled.params.y = writable<T>(y);
  Tensor parts = y;
  if (form != CouplingForm::kAdditive) {
    parts = empty_of(x, {batch, channels, affine_coupling_parts<T>(time)}, ScalarType::Double);
    coupled.params.row_log_det = writable<double>(parts);
  }
  launch_affine_coupling(coupled.params, writable<acc_t>(log_det), on.stream());
  return {y, log_det};
}

template <class T>
std::vector<Tensor> run_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& shift,
    const OptionalTensor& log_scale, const OptionalTensor& mask, CouplingForm form, bool reverse) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const auto output = [&] { return empty_of(x, {batch, channels, time}, scalar_type_of<T>); };
  const Tensor grad_x = output(), grad_shift = output();
  const Tensor grad_log_scale = log_scale ? output() : empty_of(x, {0}, scalar_type_of<T>);
  if (grad_x.numel() > 0) {
    const Coupled<T> coupled(x, shift, log_scale, mask, form, reverse);
    const auto dense_grad = Dense<T>::batched(grad, "grad", x);
    const auto dense_grad_log_det = Dense<acc_t>::whole(grad_log_det, "grad_log_det", x);
    const AffineCouplingBackwardParams<T> params = {
        coupled.params,      dense_grad.data,         dense_grad_log_det.data,
        writable<T>(grad_x), writable<T>(grad_shift), log_scale ? writable<T>(grad_log_scale) : nullptr,
        dense_grad.batch};
    launch_affine_coupling_backward(params, on.stream());
  }
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace

std::tuple<Tensor, Tensor> affine_coupling(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    const std::string& form, bool reverse) {
  const CouplingForm parsed = check_coupling(x, shift, log_scale, mask, form);
  return dispatch(x, "x", [&](auto type) {
    return run<typename decltype(type)::type>(x, shift, log_scale, mask, parsed, reverse);
  });
}

std::vector<Tensor> affine_coupling_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& shift,
    const OptionalTensor& log_scale, const OptionalTensor& mask, const std::string& form, bool reverse) {
  const CouplingForm parsed = check_coupling(x, shift, log_scale, mask, form);
  check_shape(grad, "grad", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  check_shape(grad_log_det, "grad_log_det", "[B]", {x.size(0)});
  return dispatch(x, "x", [&](auto type) {
    return run_backward<typename decltype(type)::type>(grad, grad_log_det, x, shift, log_scale, mask, parsed, reverse);
  });
}

}  // namespace fastflow
