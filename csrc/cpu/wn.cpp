#include "ops.h"
#include "wn_layer_host.h"

namespace fastflow {
namespace {

// out [blocks, columns, rows] <- in [blocks, rows, columns]; they may be the same memory.
template <class T>
void transpose(const T* in, int64_t in_stride, T* out, int64_t blocks, int64_t rows, int64_t columns) {
  const int64_t size = rows * columns;
  if (size == 0) return;
  torch::stable::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    static thread_local Scratch memory;
    T* block = memory.get<T>(size);
    for (int64_t i = begin; i < end; ++i) {
      const T* from = in + i * in_stride;
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r) block[c * rows + r] = from[r * columns + c];
      std::copy(block, block + size, out + i * size);
    }
  });
}

// Time from the order of steps to that of phases, [F, P] to [P, F], in each row of [B, rows, F * P].
template <class T>
void by_phase(const Tensor& in, const char* name, const Tensor& out, int64_t phases) {
  const Dense<T> dense = Dense<T>::batched(in, name);
  const int64_t rows = in.size(1), time = in.size(2);
  for (int64_t b = 0; b < in.size(0); ++b)
    transpose(dense.data + b * dense.batch, time, writable<T>(out) + b * rows * time, rows, time / phases, phases);
}

template <class T>
Tensor launch(
    const Tensor& h, const std::vector<WnLayerTensors>& layers, const OptionalTensor& mask_tensor,
    const std::vector<int64_t>& dilations, bool causal, double res_scale, double skip_scale, bool last_residual,
    bool in_bf16) {
  const int64_t batch = h.size(0), channels = h.size(1), time = h.size(2);
  const int64_t last_rows = layers.back().res_skip_weight.size(0);
  const int64_t skip_channels = last_rows - (last_residual ? channels : 0);
  const Tensor result = empty_like_shape(h, {batch, skip_channels, time});
  // The hidden state goes to and fro between two buffers: a tile reads its neighbours' steps of the layer before.
  const Tensor states[2] = {empty_like_shape(h, {batch, channels, time}), empty_like_shape(h, {batch, channels, time})};

  constexpr ScalarType dtype = scalar_type_of<T>;
  // Where there are phases, time lies in their order from here on.
  const OptionalTensor& cond_weight = layers[0].cond_weight;
  const int64_t phases = cond_weight && cond_weight->dim() == 3 ? cond_weight->size(0) : 1;
  Tensor first = h;
  OptionalTensor mask = mask_tensor;
  if (phases > 1) {
    first = states[1];  // of which layer 1 makes its own
    by_phase<T>(h, "h", first, phases);
    if (mask) {
      mask = empty_like_shape(h, {batch, 1, time});
      by_phase<T>(*mask_tensor, "mask", *mask, phases);
    }
  }

  OptionalTensor cond;
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool last = i + 1 == layers.size();
    WnLayerTensors tensors = layers[i];
    if (phases > 1) check_same_kind(*tensors.cond_weight, "cond_weight", in_bf16 ? ScalarType::BFloat16 : dtype);
    if (in_bf16) {  // one layer's weights at a time; conditioning that all layers share, once
      if (i == 0 || !tensors.cond_weight) cond = in_float32(tensors.cond, "cond");
      tensors.cond.reset();
      tensors = in_float32(tensors);
      tensors.cond = cond;
    }
    WnLayer<T> layer(i == 0 ? first : states[(i + 1) % 2], tensors, mask, dilations[i], causal, phases);
    WnLayerParams<T>& params = layer.params;
    params.skip_channels = skip_channels;
    params.res_scale = static_cast<T>(res_scale);
    params.skip = writable<T>(result);
    params.skip_accumulate = i > 0;
    if (last) {
      params.skip_scale = static_cast<T>(skip_scale);
      params.skip_masked = true;
      if (last_residual) {  // these rows have no reader
        params.res_skip_weight += channels * params.gate_channels;
        if (params.res_skip_bias) params.res_skip_bias += channels;
      }
    } else {
      params.h_out = writable<T>(states[i % 2]);
    }
    run_wn_layer(params, in_bf16);
  }
  if (phases > 1)
    transpose(writable<T>(result), time, writable<T>(result), batch * skip_channels, phases, time / phases);
  return result;
}

}  // namespace

Tensor wn(
    const Tensor& h, const std::vector<Tensor>& conv_weights, const std::vector<Tensor>& conv_biases,
    const std::vector<Tensor>& res_skip_weights, const std::vector<Tensor>& res_skip_biases, const OptionalTensor& cond,
    const std::vector<Tensor>& cond_weights, const std::vector<Tensor>& cond_biases,
    const std::vector<Tensor>& input_biases, const OptionalTensor& mask, const std::vector<int64_t>& dilations,
    bool causal, double res_scale, double skip_scale, bool last_residual) {
  const std::vector<WnLayerTensors> layers = wn_layers(
      h, conv_weights, conv_biases, res_skip_weights, res_skip_biases, cond, cond_weights, cond_biases, input_biases,
      mask, dilations, causal, last_residual);
  return dispatch_with_bfloat16(h, "h", [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, bfloat16>) {
      const Tensor result = launch<float>(
          in_float32(h, "h"), layers, in_float32(mask, "mask"), dilations, causal, res_scale, skip_scale, last_residual,
          true);
      return torch::stable::to(result, ScalarType::BFloat16);
    } else {
      return launch<T>(h, layers, mask, dilations, causal, res_scale, skip_scale, last_residual, false);
    }
  });
}

}  // namespace fastflow
