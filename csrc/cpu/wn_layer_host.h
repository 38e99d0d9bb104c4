// What wn_layer and wn share on the host: one layer's dense tensors, and running it.
#pragma once

#include "../wn_host.h"
#include "host.h"

namespace fastflow {

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
