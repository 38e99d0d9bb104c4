#include <algorithm>

#include "ops.h"
#include "wn_host.h"

namespace fastflow {
namespace {

template <class T>
Tensor run(
    const Tensor& h, const std::vector<WnLayerTensors>& layers, const OptionalTensor& mask,
    const std::vector<int64_t>& dilations, bool causal, double res_scale, double skip_scale, bool last_residual,
    bool tf32) {
  using acc_t = accumulator_t<T>;
  const arch::OnDevice on(h);
  const int64_t batch = h.size(0), channels = h.size(1), time = h.size(2);
  const int64_t unread = last_residual ? channels : 0;
  const int64_t skip_channels = layers.back().res_skip_weight.size(0) - unread;
  const Tensor skip = empty_of(h, {batch, time, skip_channels}, scalar_type_of<T>);
  if (batch == 0 || time == 0 || skip_channels == 0) return channels_first(skip);

  // The hidden state goes to and fro between two buffers: a tile reads its neighbours' steps of the layer before.
  const size_t count = layers.size();
  std::vector<Tensor> states;
  for (size_t i = 0; i < std::min<size_t>(2, count - 1); ++i) {
    states.push_back(empty_of(h, {batch, time, channels}, scalar_type_of<T>));
  }
  constexpr size_t most = WnParams<T>::kMaxLayers;
  static_assert(
      most % 2 == 0, "each launch but the last must end in states[1], which the next one does not write first");
  for (size_t begin = 0; begin < count; begin += most) {
    const size_t end = std::min(count, begin + most);
    const bool last = end == count;
    const Tensor input = begin == 0 ? h : channels_first(states[1]);
    WnStack<T> stack(
        input, {layers.begin() + begin, layers.begin() + end}, mask,
        {dilations.begin() + begin, dilations.begin() + end}, causal, !last, last ? unread : 0);
    WnParams<T>& p = stack.params;
    p.res_scale = static_cast<acc_t>(res_scale);
    p.skip_accumulate = begin > 0;
    if (last) {
      p.skip_scale = static_cast<acc_t>(skip_scale);
      p.skip_masked = p.mask != nullptr;
    }
    for (size_t i = 0; i < states.size(); ++i) p.states[i] = writable<T>(states[i]);
    p.skip = writable<T>(skip);
    stack.run(tf32, on);
  }
  return channels_first(skip);
}

}  // namespace

Tensor wn(
    const Tensor& h, const std::vector<Tensor>& conv_weights, const std::vector<Tensor>& conv_biases,
    const std::vector<Tensor>& res_skip_weights, const std::vector<Tensor>& res_skip_biases, const OptionalTensor& cond,
    const std::vector<Tensor>& cond_weights, const std::vector<Tensor>& cond_biases,
    const std::vector<Tensor>& input_biases, const OptionalTensor& mask, const std::vector<int64_t>& dilations,
    bool causal, double res_scale, double skip_scale, bool last_residual, bool tf32) {
  const std::vector<WnLayerTensors> layers = wn_layers(
      h, conv_weights, conv_biases, res_skip_weights, res_skip_biases, cond, cond_weights, cond_biases, input_biases,
      mask, dilations, causal, last_residual);
  for (const WnLayerTensors& layer : layers) {
    FASTFLOW_CHECK(
        layer.conv_weight.size(0) == layers[0].conv_weight.size(0) &&
            layer.conv_weight.size(2) == layers[0].conv_weight.size(2),
        "`conv_weights` must all have one shape for the cuda backend; got ", shape_string(layers[0].conv_weight),
        " and ", shape_string(layer.conv_weight));
  }
  return dispatch(h, "h", [&](auto type) {
    return run<typename decltype(type)::type>(
        h, layers, mask, dilations, causal, res_scale, skip_scale, last_residual, tf32);
  });
}

}  // namespace fastflow
