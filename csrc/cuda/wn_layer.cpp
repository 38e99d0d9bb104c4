#include "ops.h"
#include "wn_host.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> run(
    const Tensor& h, const WnLayerTensors& layer, const OptionalTensor& mask, int64_t dilation, bool causal,
    double res_scale, bool residual, bool tf32) {
  const arch::OnDevice on(h);
  WnStack<T> stack(h, {layer}, mask, {dilation}, causal, residual, 0);
  WnParams<T>& p = stack.params;
  p.res_scale = static_cast<typename WnParams<T>::acc_t>(res_scale);
  const Tensor h_out = empty_of(h, {p.batch, p.time, residual ? p.channels : 0}, scalar_type_of<T>);
  const Tensor skip = empty_of(h, {p.batch, p.time, p.skip_channels}, scalar_type_of<T>);
  p.states[0] = residual ? writable<T>(h_out) : nullptr;
  p.skip = p.skip_channels > 0 ? writable<T>(skip) : nullptr;
  if (p.batch > 0 && p.time > 0 && (p.states[0] || p.skip)) stack.run(tf32, on);
  return {channels_first(h_out), channels_first(skip)};
}

template <class T>
std::tuple<Tensor, Tensor> run_gate_backward(
    const Tensor& grad_r, const Tensor& h, const WnLayerTensors& layer, const OptionalTensor& mask, int64_t dilation,
    bool causal, bool residual, bool tf32) {
  const arch::OnDevice on(h);
  const WnStack<T> stack(h, {layer}, mask, {dilation}, causal, residual, 0);
  const int64_t batch = h.size(0), time = h.size(2), gate = stack.params.gate_channels;
  const Tensor grad_u = empty_of(h, {batch, time, 2 * gate}, scalar_type_of<T>);
  const Tensor a = empty_of(h, {batch, time, gate}, scalar_type_of<T>);
  Tensor turned = grad_r;
  turned = torch::stable::transpose(turned, 1, 2);
  const Dense<T> dense_grad = Dense<T>::whole(turned, "grad_r", h);
  if (batch > 0 && time > 0 && gate > 0) {
    stack.run_gate_backward({stack.params, dense_grad.data, writable<T>(grad_u), writable<T>(a)}, tf32, on);
  }
  return {channels_first(grad_u), channels_first(a)};
}

}  // namespace

std::tuple<Tensor, Tensor> wn_layer(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual, bool tf32) {
  const WnLayerTensors layer = {conv_weight, conv_bias,   res_skip_weight, res_skip_bias,
                                cond,        cond_weight, cond_bias,       input_bias};
  check_wn_layer(h, layer, mask, dilation, causal, residual);
  return dispatch(h, "h", [&](auto type) {
    return run<typename decltype(type)::type>(h, layer, mask, dilation, causal, res_scale, residual, tf32);
  });
}

std::tuple<Tensor, Tensor> wn_gate_backward(
    const Tensor& grad_r, const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias,
    const Tensor& res_skip_weight, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, int64_t dilation, bool causal, bool residual,
    bool tf32) {
  const WnLayerTensors layer = {conv_weight, conv_bias,   res_skip_weight, OptionalTensor(),
                                cond,        cond_weight, cond_bias,       input_bias};
  check_wn_layer(h, layer, OptionalTensor(), dilation, causal, residual);
  check_shape(grad_r, "grad_r", "[B, R + S, T]", {h.size(0), res_skip_weight.size(0), h.size(2)});
  return dispatch(h, "h", [&](auto type) {
    return run_gate_backward<typename decltype(type)::type>(
        grad_r, h, layer, OptionalTensor(), dilation, causal, residual, tf32);
  });
}

}  // namespace fastflow
