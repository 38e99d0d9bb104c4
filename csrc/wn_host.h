// What wn_layer and wn check on the host, in both libraries.
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

// `phases`: 0, or P for a cond_weight [P, 2G, Cc], one for each phase.
inline void check_wn_layer(
    const Tensor& h, const WnLayerTensors& layer, const OptionalTensor& mask, int64_t dilation, bool causal,
    bool residual, int64_t phases = 0) {
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
  if (phases) {
    FASTFLOW_CHECK(layer.cond, "`cond_weight` must come with `cond`");
    const Tensor& cond = *layer.cond;
    FASTFLOW_CHECK(
        cond.dim() == 3 && cond.size(0) == batch && cond.size(2) * phases == time,
        "`cond` must be [B, Cc, T / P] with B = ", batch, ", T = ", time, " and P = ", phases, "; got ",
        shape_string(cond));
    check_shape(*layer.cond_weight, "cond_weight", "[P, 2G, Cc]", {phases, gated, cond.size(1)});
  } else if (layer.cond) {
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
  if (layer.cond_bias && phases && layer.cond_bias->dim() == 2) {
    check_shape(*layer.cond_bias, "cond_bias", "[P, 2G]", {phases, gated});
  } else if (layer.cond_bias) {
    check_shape(*layer.cond_bias, "cond_bias", "[2G]", {gated});
  }
  if (layer.input_bias) {
    const Tensor& bias = *layer.input_bias;
    FASTFLOW_CHECK(
        bias.dim() == 2 && (bias.size(0) == batch || bias.size(0) == 1) && bias.size(1) == channels,
        "`input_bias` must be [B or 1, C] with B = ", batch, " and C = ", channels, "; got ", shape_string(bias));
  }
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {batch, 1, time});
}

// Checks the arguments of `wn` and returns what each layer takes out of them.
inline std::vector<WnLayerTensors> wn_layers(
    const Tensor& h, const std::vector<Tensor>& conv_weights, const std::vector<Tensor>& conv_biases,
    const std::vector<Tensor>& res_skip_weights, const std::vector<Tensor>& res_skip_biases, const OptionalTensor& cond,
    const std::vector<Tensor>& cond_weights, const std::vector<Tensor>& cond_biases,
    const std::vector<Tensor>& input_biases, const OptionalTensor& mask, const std::vector<int64_t>& dilations,
    bool causal, bool last_residual) {
  const auto at = [](const std::vector<Tensor>& list, size_t i) {
    return list.empty() ? OptionalTensor() : OptionalTensor(list[i]);
  };
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

  const bool phased = !cond_weights.empty() && cond_weights[0].dim() == 3;
  FASTFLOW_CHECK(
      !phased || cond_weights[0].size(0) > 0, "`cond_weights` must have at least one phase; got ",
      shape_string(cond_weights[0]));
  const int64_t phases = phased ? cond_weights[0].size(0) : 0;
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
    check_wn_layer(h, layers[i], mask, dilations[i], causal, i + 1 < count || last_residual, phases);
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
  return layers;
}

}  // namespace fastflow
