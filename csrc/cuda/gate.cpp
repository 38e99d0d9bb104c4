#include "ops.h"

namespace fastflow {
namespace {

template <class T>
Tensor run(const Tensor& x) {
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1) / 2, time = x.size(2);
  const Tensor y = empty_of(x, {batch, channels, time}, scalar_type_of<T>);
  if (y.numel() == 0) return y;
  const auto dense_x = Dense<T>::batched(x, "x", x);
  const GateParams<T> params = {dense_x.data, writable<T>(y), dense_x.batch, batch, channels, time};
  launch_gate(params, on.stream());
  return y;
}

template <class T>
Tensor run_backward(const Tensor& grad, const Tensor& x) {
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1) / 2, time = x.size(2);
  const Tensor grad_x = empty_of(x, {batch, 2 * channels, time}, scalar_type_of<T>);
  if (grad_x.numel() == 0) return grad_x;
  const auto dense_x = Dense<T>::batched(x, "x", x);
  const auto dense_grad = Dense<T>::batched(grad, "grad", x);
  const GateBackwardParams<T> params = {
      dense_x.data, dense_grad.data, writable<T>(grad_x), dense_x.batch, dense_grad.batch, batch, channels, time};
  launch_gate_backward(params, on.stream());
  return grad_x;
}

void check_gate(const Tensor& x) {
  FASTFLOW_CHECK(
      x.dim() == 3 && x.size(1) % 2 == 0, "`x` must be [B, 2G, T] with an even number of channels; got ",
      shape_string(x));
}

}  // namespace

Tensor gate(const Tensor& x) {
  check_gate(x);
  return dispatch(x, "x", [&](auto type) { return run<typename decltype(type)::type>(x); });
}

Tensor gate_backward(const Tensor& grad, const Tensor& x) {
  check_gate(x);
  check_shape(grad, "grad", "[B, G, T]", {x.size(0), x.size(1) / 2, x.size(2)});
  return dispatch(x, "x", [&](auto type) { return run_backward<typename decltype(type)::type>(grad, x); });
}

}  // namespace fastflow
