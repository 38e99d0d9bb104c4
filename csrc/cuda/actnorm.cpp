#include "flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

// Holds the dense tensors for as long as the parameters are used.
template <class T>
struct Normalised {
  Dense<T> x, loc, scale, mask;
  ActNormParams<T> params = {};

  Normalised(
      const Tensor& x_tensor, const Tensor& loc_tensor, const Tensor& scale_tensor, const OptionalTensor& mask_tensor,
      bool reverse)
      : x(Dense<T>::batched(x_tensor, "x", x_tensor)),
        loc(Dense<T>::whole(loc_tensor, "loc", x_tensor)),
        scale(Dense<T>::whole(scale_tensor, "scale", x_tensor)),
        mask(Dense<T>::batched(mask_tensor, "mask", x_tensor)) {
    params.x = x.data;
    params.loc = loc.data;
    params.scale = scale.data;
    params.mask = mask.data;
    params.x_batch = x.batch;
    params.mask_batch = mask.batch;
    params.batch = x_tensor.size(0);
    params.channels = x_tensor.size(1);
    params.time = x_tensor.size(2);
    params.reverse = reverse;
  }
};

template <class T>
std::tuple<Tensor, Tensor> run(
    const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask, bool reverse) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0);
  const Tensor y = empty_of(x, {batch, x.size(1), x.size(2)}, scalar_type_of<T>);
  if (y.numel() == 0) return {y, zeros_of<acc_t>(x, {batch}, on.stream())};
  const Tensor log_det = empty_of(x, {batch}, scalar_type_of<acc_t>);
  Normalised<T> normalised(x, loc, scale, mask, reverse);
  normalised.params.y = writable<T>(y);
  launch_actnorm<T>({normalised.params, writable<acc_t>(log_det)}, on.stream());
  return {y, log_det};
}

template <class T>
std::vector<Tensor> run_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& loc, const Tensor& scale,
    const OptionalTensor& mask, bool reverse) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1);
  const Tensor grad_x = empty_of(x, {batch, channels, x.size(2)}, scalar_type_of<T>);
  if (grad_x.numel() == 0) {
    return {grad_x, zeros_of<T>(x, {channels}, on.stream()), zeros_of<T>(x, {channels}, on.stream())};
  }
  const Normalised<T> normalised(x, loc, scale, mask, reverse);
  const auto dense_grad = Dense<T>::batched(grad, "grad", x);
  const auto dense_grad_log_det = Dense<acc_t>::whole(grad_log_det, "grad_log_det", x);
  const Tensor grad_loc = empty_of(x, {channels}, scalar_type_of<T>);
  const Tensor grad_scale = empty_of(x, {channels}, scalar_type_of<T>);
  const Tensor parts = empty_of(x, {actnorm_backward_parts(normalised.params)}, ScalarType::Double);
  const Tensor steps = empty_of(x, {batch}, ScalarType::Double);
  launch_actnorm_backward<T>(
      {normalised.params, dense_grad.data, dense_grad_log_det.data, writable<T>(grad_x), writable<T>(grad_loc),
       writable<T>(grad_scale), writable<double>(parts), writable<double>(steps), dense_grad.batch},
      on.stream());
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
  return dispatch(x, "x", [&](auto type) { return run<typename decltype(type)::type>(x, loc, scale, mask, reverse); });
}

std::vector<Tensor> actnorm_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& loc, const Tensor& scale,
    const OptionalTensor& mask, bool reverse) {
  check_actnorm(x, loc, scale, mask);
  check_shape(grad, "grad", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  check_shape(grad_log_det, "grad_log_det", "[B]", {x.size(0)});
  return dispatch(x, "x", [&](auto type) {
    return run_backward<typename decltype(type)::type>(grad, grad_log_det, x, loc, scale, mask, reverse);
  });
}

}  // namespace fastflow
