#include "ops.h"

namespace fastflow {
namespace {

template <class T>
Tensor launch(
    const Tensor& h_tensor, const Tensor& cond_tensor, const Tensor& scale_tensor, const Tensor& shift_tensor,
    const Tensor& taps_tensor, const Tensor& weight_tensor, const Tensor& bias_tensor, const Tensor& res_weight_tensor,
    const Tensor& res_bias_tensor) {
  const auto h = Dense<T>::batched(h_tensor, "h"), cond = Dense<T>::batched(cond_tensor, "cond");
  const auto scale = Dense<T>::whole(scale_tensor, "scale"), shift = Dense<T>::whole(shift_tensor, "shift");
  const auto taps = Dense<T>::whole(taps_tensor, "taps"), weight = Dense<T>::whole(weight_tensor, "weight");
  const auto bias = Dense<T>::whole(bias_tensor, "bias");
  const auto res_weight = Dense<T>::whole(res_weight_tensor, "res_weight");
  const auto res_bias = Dense<T>::whole(res_bias_tensor, "res_bias");
  const int64_t layers = scale_tensor.size(0);
  const int64_t batch = h_tensor.size(0), channels = h_tensor.size(1), time = h_tensor.size(2);
  // A tile reads its neighbours' steps of the layer before.
  const Tensor states[2] = {
      empty_like_shape(h_tensor, {batch, channels, time}), empty_like_shape(h_tensor, {batch, channels, time})};
  if (h_tensor.numel() == 0) return states[0];

  const Kernels<T>& k = kernels<T>();
  for (int64_t l = 0; l < layers; ++l) {
    SeparableWnParams<T> params = {};
    params.h = l == 0 ? h.data : writable<T>(states[(l - 1) % 2]);
    params.cond = cond.data + l * 2 * channels * cond_tensor.size(2);
    params.scale = scale.data + l * channels;
    params.shift = shift.data + l * channels;
    params.taps = taps.data + l * channels * 3;
    params.weight = weight.data + l * 2 * channels * channels;
    params.bias = bias.data + l * 2 * channels;
    params.res_weight = res_weight.data + l * channels * channels;
    params.res_bias = res_bias.data + l * channels;
    params.h_out = writable<T>(states[l % 2]);
    params.h_batch = l == 0 ? h.batch : channels * time;
    params.cond_batch = cond.batch;
    params.batch = batch;
    params.channels = channels;
    params.time = time;
    params.frames = cond_tensor.size(2);
    const int64_t vectors = k.separable_wn_vectors(params), products = 3 * channels * channels * time / vectors;
    torch::stable::parallel_for(0, batch * vectors, kProductGrain / products + 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch scratch;  // in here, or threads of the pool would never free theirs
      k.separable_wn(params, begin, end, scratch.get<T>(k.separable_wn_scratch_size(params)));
    });
  }
  return states[(layers - 1) % 2];
}

}  // namespace

Tensor separable_wn(
    const Tensor& h, const Tensor& cond, const Tensor& scale, const Tensor& shift, const Tensor& taps,
    const Tensor& weight, const Tensor& bias, const Tensor& res_weight, const Tensor& res_bias) {
  check_rank(h, "h", "[B, C, T]", 3);
  check_rank(scale, "scale", "[L, C]", 2);
  check_rank(cond, "cond", "[B, 2 C L, F]", 3);
  const int64_t layers = scale.size(0), channels = h.size(1), frames = cond.size(2);
  FASTFLOW_CHECK(layers > 0, "`scale` must have at least one layer; got ", shape_string(scale));
  check_shape(scale, "scale", "[L, C]", {layers, channels});
  check_shape(shift, "shift", "[L, C]", {layers, channels});
  check_shape(taps, "taps", "[L, C, 3]", {layers, channels, 3});
  check_shape(weight, "weight", "[L, 2 C, C]", {layers, 2 * channels, channels});
  check_shape(bias, "bias", "[L, 2 C]", {layers, 2 * channels});
  check_shape(res_weight, "res_weight", "[L, C, C]", {layers, channels, channels});
  check_shape(res_bias, "res_bias", "[L, C]", {layers, channels});
  check_shape(cond, "cond", "[B, 2 C L, F]", {h.size(0), 2 * channels * layers, frames});
  FASTFLOW_CHECK(
      frames ? h.size(2) % frames == 0 : h.size(2) == 0, "`h` must have a multiple of the ", frames,
      " steps of `cond`; got ", shape_string(h));
  return dispatch(h, "h", [&](auto type) {
    return launch<decltype(type)>(h, cond, scale, shift, taps, weight, bias, res_weight, res_bias);
  });
}

}  // namespace fastflow
