#include "ops.h"
#include "wn_layer_host.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& h, const WnLayerTensors& tensors, const OptionalTensor& mask, int64_t dilation, bool causal,
    double res_scale, bool residual, bool in_bf16) {
  WnLayer<T> layer(h, tensors, mask, dilation, causal);
  WnLayerParams<T>& params = layer.params;
  const int64_t residual_rows = residual ? params.channels : 0;
  params.skip_channels = tensors.res_skip_weight.size(0) - residual_rows;
  params.res_scale = static_cast<T>(res_scale);
  const Tensor h_out = empty_like_shape(h, {params.batch, residual_rows, params.time});
  const Tensor skip = empty_like_shape(h, {params.batch, params.skip_channels, params.time});
  params.h_out = residual ? writable<T>(h_out) : nullptr;
  params.skip = writable<T>(skip);
  run_wn_layer(params, in_bf16);
  return {h_out, skip};
}

template <class T>
std::tuple<Tensor, Tensor> launch_keeping_u(
    const Tensor& h, const WnLayerTensors& tensors, const OptionalTensor& mask, int64_t dilation, bool causal,
    double res_scale, bool residual) {
  WnLayer<T> layer(h, tensors, mask, dilation, causal);
  WnLayerParams<T>& params = layer.params;
  params.res_scale = static_cast<T>(res_scale);
  const Tensor h_out = empty_like_shape(h, {params.batch, residual ? params.channels : 0, params.time});
  const Tensor u = empty_like_shape(h, {params.batch, 2 * params.gate_channels, params.time});
  params.h_out = residual ? writable<T>(h_out) : nullptr;
  params.u = writable<T>(u);
  run_wn_layer(params, false);
  return {h_out, u};
}

template <class T>
std::tuple<Tensor, Tensor> launch_gate_backward(const Tensor& grad_r, const Tensor& u, const Tensor& res_skip_weight) {
  const Dense<T> dense_grad = Dense<T>::batched(grad_r, "grad_r"), dense_u = Dense<T>::whole(u, "u");
  const Dense<T> dense_weight = Dense<T>::whole(res_skip_weight, "res_skip_weight");
  const int64_t batch = u.size(0), gate_channels = u.size(1) / 2, time = u.size(2);
  const Tensor grad_u = empty_like_shape(u, {batch, 2 * gate_channels, time});
  const Tensor a = empty_like_shape(u, {batch, gate_channels, time});
  const WnGateBackwardRowParams<T> params = {
      dense_grad.data,  dense_u.data, dense_weight.data, writable<T>(grad_u), writable<T>(a),
      dense_grad.batch, batch,        grad_r.size(1),    gate_channels,       time};
  run_tiled(kernels<T>().wn_gate_backward, params, batch);
  return {grad_u, a};
}

}  // namespace

std::tuple<Tensor, Tensor> wn_layer_keeping_u(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual) {
  const WnLayerTensors layer = {conv_weight, conv_bias,   res_skip_weight, res_skip_bias,
                                cond,        cond_weight, cond_bias,       input_bias};
  check_wn_layer(h, layer, mask, dilation, causal, residual);
  return dispatch(h, "h", [&](auto type) {
    return launch_keeping_u<decltype(type)>(h, layer, mask, dilation, causal, res_scale, residual);
  });
}

std::tuple<Tensor, Tensor> wn_gate_backward(const Tensor& grad_r, const Tensor& u, const Tensor& res_skip_weight) {
  check_rank(u, "u", "[B, 2G, T]", 3);
  FASTFLOW_CHECK(
      res_skip_weight.dim() == 2 && 2 * res_skip_weight.size(1) == u.size(1),
      "`res_skip_weight` must be [R + S, G]; got ", shape_string(res_skip_weight));
  check_shape(grad_r, "grad_r", "[B, R + S, T]", {u.size(0), res_skip_weight.size(0), u.size(2)});
  return dispatch(u, "u", [&](auto type) { return launch_gate_backward<decltype(type)>(grad_r, u, res_skip_weight); });
}

std::tuple<Tensor, Tensor> wn_layer(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual) {
  const WnLayerTensors layer = {conv_weight, conv_bias,   res_skip_weight, res_skip_bias,
                                cond,        cond_weight, cond_bias,       input_bias};
  check_wn_layer(h, layer, mask, dilation, causal, residual);
  return dispatch_with_bfloat16(h, "h", [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, bfloat16>) {
      const auto [h_out, skip] = launch<float>(
          in_float32(h, "h"), in_float32(layer), in_float32(mask, "mask"), dilation, causal, res_scale, residual, true);
      return std::make_tuple(
          torch::stable::to(h_out, ScalarType::BFloat16), torch::stable::to(skip, ScalarType::BFloat16));
    } else {
      return launch<T>(h, layer, mask, dilation, causal, res_scale, residual, false);
    }
  });
}

}  // namespace fastflow
