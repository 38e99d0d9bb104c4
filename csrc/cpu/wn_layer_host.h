// What wn_layer and wn share on the host: the checks of one layer, and running it.
#pragma once

#include "host.h"

namespace fastflow {

// One layer's tensors as the schema names them; `residual_rows` are those the weights have, used or not.
struct WnLayerTensors {
  Tensor conv_weight;
  OptionalTensor conv_bias;
  Tensor res_skip_weight;
  OptionalTensor res_skip_bias;
  OptionalTensor cond, cond_weight, cond_bias, input_bias;
};

inline void check_wn_layer(
    const Tensor& h, const WnLayerTensors& layer, const OptionalTensor& mask, int64_t dilation, bool causal,
    bool residual) {
  check_rank(h, "h", "[B, C, T]", 3);
  const int64_t batch = h.size(0), channels = h.size(1), time = h.size(2);
  const Tensor& weight = layer.conv_weight;
  FASTFLOW_CHECK(
      weight.dim() == 3 && weight.size(0) % 2 == 0 && weight.size(1) == channels && weight.size(2) >= 1,
      "`conv_weight` must be [2G, C, k] with C = ", channels, "; got ", shape_string(weight));
  const int64_t gated = weight.size(0), kernel_size = weight.size(2);
  FASTFLOW_CHECK(
      causal || kernel_size % 2 == 1, "`conv_weight` must have an odd kernel size k unless causal; got ",
      shape_string(weight));
  FASTFLOW_CHECK(dilation >= 1, "`dilation` must be at least 1; got ", dilation);
  if (layer.conv_bias) check_shape(*layer.conv_bias, "conv_bias", "[2G]", {gated});
  const Tensor& res_skip = layer.res_skip_weight;
  FASTFLOW_CHECK(
      res_skip.dim() == 2 && res_skip.size(1) == gated / 2 && res_skip.size(0) >= (residual ? channels : 0),
      "`res_skip_weight` must be [R + S, G] with R = ", residual ? channels : 0, " and G = ", gated / 2, "; got ",
      shape_string(res_skip));
  if (layer.res_skip_bias) check_shape(*layer.res_skip_bias, "res_skip_bias", "[R + S]", {res_skip.size(0)});
  if (layer.cond) {
    const Tensor& cond = *layer.cond;
    FASTFLOW_CHECK(
        cond.dim() == 3 && cond.size(0) == batch && (cond.size(2) == time || cond.size(2) == 1),
        "`cond` must be [B, Cc, T or 1] with B = ", batch, " and T = ", time, "; got ", shape_string(cond));
    if (layer.cond_weight) {
      check_shape(*layer.cond_weight, "cond_weight", "[2G, Cc]", {gated, cond.size(1)});
    } else {
      FASTFLOW_CHECK(
          cond.size(1) == gated, "`cond` must have 2G = ", gated, " channels when there is no `cond_weight`; got ",
          shape_string(cond));
    }
  } else {
    FASTFLOW_CHECK(!layer.cond_weight, "`cond_weight` must come with `cond`");
  }
  if (layer.cond_bias) check_shape(*layer.cond_bias, "cond_bias", "[2G]", {gated});
  if (layer.input_bias) {
    const Tensor& bias = *layer.input_bias;
    FASTFLOW_CHECK(
        bias.dim() == 2 && (bias.size(0) == batch || bias.size(0) == 1) && bias.size(1) == channels,
        "`input_bias` must be [B or 1, C] with B = ", batch, " and C = ", channels, "; got ", shape_string(bias));
  }
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {batch, 1, time});
}

// Holds the dense tensors of one layer for as long as its parameters are used.
template <class T>
struct WnLayer {
  Dense<T> h, conv_weight, conv_bias, res_skip_weight, res_skip_bias, cond, cond_weight, cond_bias, input_bias, mask;
  WnLayerParams<T> params = {};

  // Everything but the outputs and what scales them; `skip_row` is the first row of the skip half.
  WnLayer(
      const Tensor& h_tensor, const WnLayerTensors& layer, const OptionalTensor& mask_tensor, int64_t dilation,
      bool causal)
      : h(Dense<T>::batched(h_tensor, "h")),
        conv_weight(Dense<T>::whole(layer.conv_weight, "conv_weight")),
        conv_bias(Dense<T>::whole(layer.conv_bias, "conv_bias")),
        res_skip_weight(Dense<T>::whole(layer.res_skip_weight, "res_skip_weight")),
        res_skip_bias(Dense<T>::whole(layer.res_skip_bias, "res_skip_bias")),
        cond(Dense<T>::batched(layer.cond, "cond")),
        cond_weight(Dense<T>::whole(layer.cond_weight, "cond_weight")),
        cond_bias(Dense<T>::whole(layer.cond_bias, "cond_bias")),
        input_bias(Dense<T>::whole(layer.input_bias, "input_bias")),
        mask(Dense<T>::batched(mask_tensor, "mask")) {
    params.h = h.data;
    params.conv_weight = conv_weight.data;
    params.conv_bias = conv_bias.data;
    params.res_skip_weight = res_skip_weight.data;
    params.res_skip_bias = res_skip_bias.data;
    params.cond = cond.data;
    params.cond_weight = cond_weight.data;
    params.cond_bias = cond_bias.data;
    params.input_bias = input_bias.data;
    params.mask = mask.data;
    params.h_batch = h.batch;
    params.cond_batch = cond.batch;
    params.input_bias_batch = layer.input_bias && layer.input_bias->size(0) > 1 ? h_tensor.size(1) : 0;
    params.mask_batch = mask.batch;
    params.batch = h_tensor.size(0);
    params.channels = h_tensor.size(1);
    params.gate_channels = layer.conv_weight.size(0) / 2;
    params.time = h_tensor.size(2);
    params.kernel_size = layer.conv_weight.size(2);
    params.dilation = dilation;
    params.left_padding = (params.kernel_size - 1) * dilation / (causal ? 1 : 2);
    params.cond_channels = layer.cond ? layer.cond->size(1) : 0;
    params.cond_time = layer.cond ? layer.cond->size(2) : 0;
    params.res_scale = 1;
    params.skip_scale = 1;
  }

  void run() const;
};

template <class T>
void WnLayer<T>::run() const {
  const Kernels<T>& k = kernels<T>();
  const int64_t tasks = params.batch * k.wn_layer_tiles(params);
  if (tasks == 0) return;
  static thread_local Scratch packed_memory, tile_memory;
  T* packed = packed_memory.get<T>(k.wn_layer_packed_size(params));
  torch::stable::parallel_for(0, k.wn_layer_panels(params), 8, [&](int64_t begin, int64_t end) {
    k.wn_layer_pack(params, begin, end, packed);
  });
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    k.wn_layer(params, begin, end, packed, tile_memory.get<T>(k.wn_layer_scratch_size(params)));
  });
}

}  // namespace fastflow
