#include "ops.h"

namespace fastflow {
namespace {

template <class T>
Tensor launch(const Tensor& x) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const int64_t batch = x.size(0), channels = x.size(1) / 2, time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const GateParams<T> params = {dense_x.data, writable<T>(y), dense_x.batch, batch, channels, time};
  parallel_rows(kernels<T>().gate, params, batch * channels, time);
  return y;
}

template <class T>
Tensor launch_backward(const Tensor& grad, const Tensor& x) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_grad = Dense<T>::batched(grad, "grad");
  const int64_t batch = x.size(0), channels = x.size(1) / 2, time = x.size(2);
  const Tensor grad_x = empty_like_shape(x, {batch, 2 * channels, time});
  const GateBackwardParams<T> params = {
      dense_x.data, dense_grad.data, writable<T>(grad_x), dense_x.batch, dense_grad.batch, batch, channels, time};
  parallel_rows(kernels<T>().gate_backward, params, batch * channels, time);
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
  return dispatch_with_bfloat16(x, "x", [&](auto type) { return launch<decltype(type)>(x); });
}

Tensor gate_backward(const Tensor& grad, const Tensor& x) {
  check_gate(x);
  check_shape(grad, "grad", "[B, G, T]", {x.size(0), x.size(1) / 2, x.size(2)});
  return dispatch(x, "x", [&](auto type) { return launch_backward<decltype(type)>(grad, x); });
}

}  // namespace fastflow
