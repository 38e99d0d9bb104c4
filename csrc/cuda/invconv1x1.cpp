#include "flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

// Holds the dense tensors for as long as the parameters are used.
template <class T>
struct Product {
  using acc_t = accumulator_t<T>;

  Dense<T> x, mask;
  Tensor weight_owner, matrix_owner;
  InvConv1x1ForwardParams<T> params = {};

  // `eliminates`: whether a determinant or an inverse is wanted.
  Product(const Tensor& x_tensor, const Tensor& weight, const OptionalTensor& mask_tensor, bool eliminates)
      : x(Dense<T>::batched(x_tensor, "x", x_tensor)),
        mask(Dense<T>::batched(mask_tensor, "mask", x_tensor)),
        weight_owner(x_tensor),
        matrix_owner(x_tensor) {
    InvConv1x1Params<T>& op = params.op;
    op.x = x.data;
    op.mask = mask.data;
    op.x_batch = x.batch;
    op.mask_batch = mask.batch;
    op.batch = x_tensor.size(0);
    op.channels = x_tensor.size(1);
    op.time = x_tensor.size(2);
    params.weight_is_wide = weight.scalar_type() == scalar_type_of<acc_t>;
    if (params.weight_is_wide) {
      const auto dense = Dense<acc_t>::whole(weight, "weight", x_tensor);
      weight_owner = dense.owner;
      params.weight = dense.data;
    } else {
      const auto dense = Dense<T>::whole(weight, "weight", x_tensor);
      weight_owner = dense.owner;
      params.weight = dense.data;
    }
    if (eliminates && op.channels > kInvConv1x1InShared) {
      matrix_owner = empty_of(x_tensor, {op.channels, op.channels}, ScalarType::Double);
      params.matrix = writable<double>(matrix_owner);
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor> run(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = log_det ? x.size(0) : 0;
  const Tensor y = empty_of(x, {x.size(0), x.size(1), x.size(2)}, scalar_type_of<T>);
  if (y.numel() == 0) return {y, zeros_of<acc_t>(x, {batch}, on.stream())};
  const Tensor total = empty_of(x, {batch}, scalar_type_of<acc_t>);
  Product<T> product(x, weight, mask, log_det);
  product.params.op.y = writable<T>(y);
  if (log_det) product.params.log_det = writable<acc_t>(total);
  launch_invconv1x1(product.params, on.stream());
  return {y, total};
}

template <class T>
std::vector<Tensor> run_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
    bool log_det) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor grad_x = empty_of(x, {batch, channels, time}, scalar_type_of<T>);
  if (grad_x.numel() == 0) {
    const bool wide = weight.scalar_type() == scalar_type_of<acc_t>;
    const auto shape = {channels, channels};
    return {grad_x, wide ? zeros_of<acc_t>(x, shape, on.stream()) : zeros_of<T>(x, shape, on.stream())};
  }
  const Product<T> product(x, weight, mask, log_det);
  const auto dense_grad = Dense<T>::batched(grad, "grad", x);
  InvConv1x1BackwardParams<T> params = {};
  params.forward = product.params;
  params.grad = dense_grad.data;
  params.grad_batch = dense_grad.batch;
  params.grad_x = writable<T>(grad_x);
  const Tensor grad_weight = empty_of(x, {channels, channels}, weight.scalar_type());
  params.grad_weight = product.params.weight_is_wide ? static_cast<void*>(writable<acc_t>(grad_weight))
                                                     : static_cast<void*>(writable<T>(grad_weight));
  params.count = invconv1x1_parts<T>(batch, channels, time, on.device());
  const Tensor parts = empty_of(x, {params.count, channels, channels}, scalar_type_of<acc_t>);
  params.parts = writable<acc_t>(parts);
  Tensor inverse = x, steps = x;
  Dense<acc_t> dense_grad_log_det;
  if (log_det) {
    dense_grad_log_det = Dense<acc_t>::whole(grad_log_det, "grad_log_det", x);
    params.grad_log_det = dense_grad_log_det.data;
    inverse = empty_of(x, {channels, channels}, ScalarType::Double);
    params.inverse = writable<double>(inverse);
    steps = empty_of(x, {batch}, ScalarType::Double);
    params.steps = writable<double>(steps);
  }
  launch_invconv1x1_backward(params, on.stream());
  return {grad_x, grad_weight};
}

void check_invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(weight, "weight", "[C, C]", {x.size(1), x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
}

}  // namespace

std::tuple<Tensor, Tensor> invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  check_invconv1x1(x, weight, mask);
  return dispatch(x, "x", [&](auto type) { return run<typename decltype(type)::type>(x, weight, mask, log_det); });
}

std::vector<Tensor> invconv1x1_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
    bool log_det) {
  check_invconv1x1(x, weight, mask);
  check_shape(grad, "grad", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  if (log_det) check_shape(grad_log_det, "grad_log_det", "[B]", {x.size(0)});
  return dispatch(x, "x", [&](auto type) {
    return run_backward<typename decltype(type)::type>(grad, grad_log_det, x, weight, mask, log_det);
  });
}

}  // namespace fastflow
