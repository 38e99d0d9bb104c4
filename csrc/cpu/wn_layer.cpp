#include "ops.h"
#include "wn_layer_host.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& h, const WnLayerTensors& tensors, const OptionalTensor& mask, int64_t dilation, bool causal,
    double res_scale, bool residual) {
  WnLayer<T> layer(h, tensors, mask, dilation, causal);
  WnLayerParams<T>& params = layer.params;
  const int64_t residual_rows = residual ? params.channels : 0;
  params.skip_channels = tensors.res_skip_weight.size(0) - residual_rows;
  params.res_scale = static_cast<T>(res_scale);
  const Tensor h_out = empty_like_shape(h, {params.batch, residual_rows, params.time});
  const Tensor skip = empty_like_shape(h, {params.batch, params.skip_channels, params.time});
  params.h_out = residual ? writable<T>(h_out) : nullptr;
  params.skip = writable<T>(skip);
  layer.run();
  return {h_out, skip};
}

}  // namespace

std::tuple<Tensor, Tensor> wn_layer(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual) {
  const WnLayerTensors layer = {conv_weight, conv_bias,   res_skip_weight, res_skip_bias,
                                cond,        cond_weight, cond_bias,       input_bias};
  check_wn_layer(h, layer, mask, dilation, causal, residual);
  return dispatch(
      h, "h", [&](auto type) { return launch<decltype(type)>(h, layer, mask, dilation, causal, res_scale, residual); });
}

}  // namespace fastflow
