#include "ops.h"
#include "wn_layer_host.h"

namespace fastflow {
namespace {

OptionalTensor at(const std::vector<Tensor>& list, size_t i) {
  return list.empty() ? OptionalTensor() : OptionalTensor(list[i]);
}

template <class T>
Tensor launch(
    const Tensor& h, const std::vector<WnLayerTensors>& layers, const OptionalTensor& mask,
    const std::vector<int64_t>& dilations, bool causal, double res_scale, double skip_scale, bool last_residual) {
  const int64_t batch = h.size(0), channels = h.size(1), time = h.size(2);
  const int64_t last_rows = layers.back().res_skip_weight.size(0);
  const int64_t skip_channels = last_rows - (last_residual ? channels : 0);
  const Tensor result = empty_like_shape(h, {batch, skip_channels, time});
  // The hidden state goes to and fro between two buffers: a tile reads its neighbours' steps of the layer before.
  const Tensor states[2] = {empty_like_shape(h, {batch, channels, time}), empty_like_shape(h, {batch, channels, time})};

  for (size_t i = 0; i < layers.size(); ++i) {
    const bool last = i + 1 == layers.size();
    WnLayer<T> layer(i == 0 ? h : states[(i + 1) % 2], layers[i], mask, dilations[i], causal);
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
    layer.run();
  }
  return result;
}

}  // namespace

Tensor wn(
    const Tensor& h, const std::vector<Tensor>& conv_weights, const std::vector<Tensor>& conv_biases,
    const std::vector<Tensor>& res_skip_weights, const std::vector<Tensor>& res_skip_biases, const OptionalTensor& cond,
    const std::vector<Tensor>& cond_weights, const std::vector<Tensor>& cond_biases,
    const std::vector<Tensor>& input_biases, const OptionalTensor& mask, const std::vector<int64_t>& dilations,
    bool causal, double res_scale, double skip_scale, bool last_residual) {
  const size_t count = conv_weights.size();
  FASTFLOW_CHECK(count > 0, "`conv_weights` must name at least one layer; got none");
  const auto check_count = [&](size_t got, const char* name, bool required) {
    FASTFLOW_CHECK(
        got == count || (got == 0 && !required), "`", name, "` must have one entry per layer",
        required ? "" : " or none", ": ", count, "; got ", got);
  };
  check_count(conv_biases.size(), "conv_biases", false);
  check_count(res_skip_weights.size(), "res_skip_weights", true);
  check_count(res_skip_biases.size(), "res_skip_biases", false);
  check_count(cond_weights.size(), "cond_weights", false);
  check_count(cond_biases.size(), "cond_biases", false);
  check_count(input_biases.size(), "input_biases", false);
  check_count(dilations.size(), "dilations", true);

  std::vector<WnLayerTensors> layers;
  int64_t projected_channels = 0;  // of `cond`, where it comes already projected for all layers
  for (size_t i = 0; i < count; ++i) {
    OptionalTensor layer_cond = cond;
    if (cond && cond_weights.empty()) {
      check_rank(conv_weights[i], "conv_weights", "of shape [2G, C, k]", 3);
      check_rank(*cond, "cond", "[B, L * 2G, T or 1]", 3);
      const int64_t channels = conv_weights[i].size(0);
      FASTFLOW_CHECK(
          projected_channels + channels <= cond->size(1),
          "`cond` must have L * 2G channels when there are no `cond_weights`; got ", shape_string(*cond));
      Tensor whole = *cond;
      layer_cond = torch::stable::narrow(whole, 1, projected_channels, channels);
      projected_channels += channels;
    }
    layers.push_back(
        {conv_weights[i], at(conv_biases, i), res_skip_weights[i], at(res_skip_biases, i), layer_cond,
         at(cond_weights, i), at(cond_biases, i), at(input_biases, i)});
    check_wn_layer(h, layers[i], mask, dilations[i], causal, i + 1 < count || last_residual);
  }
  FASTFLOW_CHECK(
      projected_channels == 0 || projected_channels == cond->size(1),
      "`cond` must have L * 2G channels when there are no `cond_weights`; got ", shape_string(*cond));
  const int64_t skip_channels = layers.back().res_skip_weight.size(0) - (last_residual ? h.size(1) : 0);
  for (size_t i = 0; i + 1 < count; ++i) {
    FASTFLOW_CHECK(
        layers[i].res_skip_weight.size(0) == h.size(1) + skip_channels,
        "`res_skip_weights` must all have the same number ", "of skip rows, ", skip_channels, "; got ",
        shape_string(layers[i].res_skip_weight), " in layer ", i);
  }
  return dispatch(h, "h", [&](auto type) {
    return launch<decltype(type)>(h, layers, mask, dilations, causal, res_scale, skip_scale, last_residual);
  });
}

}  // namespace fastflow
