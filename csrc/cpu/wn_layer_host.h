// What wn_layer and wn share on the host: one layer's dense tensors, and running it.
#pragma once

#include "../wn_host.h"
#include "host.h"

namespace fastflow {

// Whether the conditioning's weight, one for each phase, is taken as bfloat16: too large to be widened beforehand.
inline bool stays_bf16(const WnLayerTensors& layer) {
  const OptionalTensor& weight = layer.cond_weight;
  return weight && weight->dim() == 3 && weight->size(0) > 1 && weight->scalar_type() == ScalarType::BFloat16;
}

// Holds the dense tensors of one layer for as long as its parameters are used. The weights have `phases` phases, and
// time lies in that order in `h` and the mask.
template <class T>
struct WnLayer {
  Dense<T> h, conv_weight, conv_bias, res_skip_weight, res_skip_bias, cond, cond_weight;
  Dense<bfloat16> cond_weight_bf16;
  Dense<T> cond_bias, input_bias, mask;
  WnLayerParams<T> params = {};

  // Everything but the outputs and what scales them.
  WnLayer(
      const Tensor& h_tensor, const WnLayerTensors& layer, const OptionalTensor& mask_tensor, int64_t dilation,
      bool causal, int64_t phases = 1)
      : h(Dense<T>::batched(h_tensor, "h")),
        conv_weight(Dense<T>::whole(layer.conv_weight, "conv_weight")),
        conv_bias(Dense<T>::whole(layer.conv_bias, "conv_bias")),
        res_skip_weight(Dense<T>::whole(layer.res_skip_weight, "res_skip_weight")),
        res_skip_bias(Dense<T>::whole(layer.res_skip_bias, "res_skip_bias")),
        cond(Dense<T>::batched(layer.cond, "cond")),
        cond_weight(Dense<T>::whole(stays_bf16(layer) ? OptionalTensor() : layer.cond_weight, "cond_weight")),
        cond_weight_bf16(
            Dense<bfloat16>::whole(stays_bf16(layer) ? layer.cond_weight : OptionalTensor(), "cond_weight")),
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
    params.cond_weight_bf16 = reinterpret_cast<const uint16_t*>(cond_weight_bf16.data);
    params.cond_bias = cond_bias.data;
    params.input_bias = input_bias.data;
    params.mask = mask.data;
    params.h_batch = h.batch;
    params.cond_batch = cond.batch;
    params.input_bias_batch = layer.input_bias && layer.input_bias->size(0) > 1 ? h_tensor.size(1) : 0;
    params.mask_batch = mask.batch;
    params.cond_bias_phase = layer.cond_bias && layer.cond_bias->dim() == 2 ? layer.cond_bias->size(1) : 0;
    params.batch = h_tensor.size(0);
    params.channels = h_tensor.size(1);
    params.gate_channels = layer.conv_weight.size(0) / 2;
    params.time = h_tensor.size(2);
    params.phases = phases;
    params.frames = params.time / phases;
    params.kernel_size = layer.conv_weight.size(2);
    params.dilation = dilation;
    params.left_padding = (params.kernel_size - 1) * dilation / (causal ? 1 : 2);
    params.cond_channels = layer.cond ? layer.cond->size(1) : 0;
    params.cond_time = layer.cond ? layer.cond->size(2) : 0;
    params.res_scale = 1;
    params.skip_scale = 1;
  }
};

// Runs a tiled operation over `batch` entries on PyTorch's own threads.
template <class Params>
void run_tiled(const TiledKernels<Params>& k, const Params& params, int64_t batch) {
  const int64_t tasks = batch * k.tiles(params);
  if (tasks == 0) return;
  static thread_local Scratch packed_memory;
  void* packed = packed_memory.get<char>(k.packed_size(params));
  torch::stable::parallel_for(
      0, k.panels(params), 8, [&](int64_t begin, int64_t end) { k.pack(params, begin, end, packed); });
  const int64_t scratch_size = k.scratch_size(params);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch tile_memory;  // in here, or threads of the pool would never free theirs
    k.run(params, begin, end, packed, tile_memory.get<char>(scratch_size));
  });
}

template <class T>
void run_wn_layer(const WnLayerParams<T>& params, bool in_bf16) {
  const Kernels<T>& k = kernels<T>();
  run_tiled(in_bf16 && k.wn_layer_bf16 ? *k.wn_layer_bf16 : k.wn_layer, params, params.batch);
}

// Layers in bfloat16 are computed on float32 copies. These check the dtype of what they copy.
inline Tensor in_float32(const Tensor& tensor, const char* name) {
  check_same_kind(tensor, name, ScalarType::BFloat16);
  return torch::stable::to(tensor, ScalarType::Float);
}
inline OptionalTensor in_float32(const OptionalTensor& tensor, const char* name) {
  return tensor ? OptionalTensor(in_float32(*tensor, name)) : OptionalTensor();
}
inline WnLayerTensors in_float32(const WnLayerTensors& layer) {
  return {
      in_float32(layer.conv_weight, "conv_weight"),
      in_float32(layer.conv_bias, "conv_bias"),
      in_float32(layer.res_skip_weight, "res_skip_weight"),
      in_float32(layer.res_skip_bias, "res_skip_bias"),
      in_float32(layer.cond, "cond"),
      stays_bf16(layer) ? layer.cond_weight : in_float32(layer.cond_weight, "cond_weight"),
      in_float32(layer.cond_bias, "cond_bias"),
      in_float32(layer.input_bias, "input_bias")};
}

}  // namespace fastflow
