// What wn, wn_layer and the gate's backward share on the host: from tensors to WnParams, and the choice of a kernel.
#pragma once

#include <string>
#include <vector>

#include "../wn_host.h"
#include "host.h"

namespace fastflow {

// Holds the dense tensors of a stack of layers for as long as its parameters are used.
template <class T>
class WnStack {
 public:
  using acc_t = accumulator_t<T>;

  WnParams<T> params = {};

  // `layers` at most WnParams::kMaxLayers; everything but the outputs and what scales them. `rows` is how many
  // residual rows the last layer's weights have that nobody reads.
  WnStack(
      const Tensor& h, const std::vector<WnLayerTensors>& layers, const OptionalTensor& mask,
      const std::vector<int64_t>& dilations, bool causal, bool last_residual, int64_t unread_rows)
      : first_(h) {
    // Kernels count tiles, and steps from the padding before the first to that after the last, in 32 bits.
    constexpr int64_t most = int64_t{1} << 31;
    const int64_t batch = h.size(0), steps = h.size(2), taps = layers[0].conv_weight.size(2);
    for (const int64_t dilation : dilations) {
      FASTFLOW_CHECK(
          dilation < most && steps + (taps - 1) * dilation < most,
          "`dilation` must be less than the 2^31 steps that the cuda backend counts; got ", dilation, " for ",
          shape_string(h));
    }
    const OptionalTensor& cond_weight = layers[0].cond_weight;
    const int64_t phases = cond_weight && cond_weight->dim() == 3 ? cond_weight->size(0) : 1;
    FASTFLOW_CHECK(
        static_cast<int64_t>(layers.size()) * batch * (steps / kWnShortestTile + phases) < most,
        "`h` must have less than 2^31 tiles of ", kWnShortestTile, " steps in all layers for the cuda backend; got ",
        shape_string(h));
    constexpr int64_t longest_tile = 128;  // of any kernel, in frames
    FASTFLOW_CHECK(
        steps + longest_tile * phases < most,
        "`cond_weights` must have fewer phases for the cuda backend, which counts their steps to 2^31; got ", phases);
    WnParams<T>& p = params;
    p.layers = static_cast<int32_t>(layers.size());
    p.phases = static_cast<int32_t>(phases);
    p.frames = static_cast<int32_t>(steps / phases);
    p.batch = static_cast<int32_t>(h.size(0));
    p.channels = static_cast<int32_t>(h.size(1));
    p.time = static_cast<int32_t>(h.size(2));
    const Tensor& weight = layers[0].conv_weight;
    p.gate_channels = static_cast<int32_t>(weight.size(0) / 2);
    p.kernel_size = static_cast<int32_t>(weight.size(2));
    p.last_residual = last_residual;
    p.skip_channels =
        static_cast<int32_t>(layers.back().res_skip_weight.size(0) - (last_residual ? p.channels : 0) - unread_rows);
    p.res_scale = p.skip_scale = 1;

    const auto& dense_h = keep(Dense<T>::channels_last(h, "h", h));
    p.h = dense_h.data;
    p.h_batch = dense_h.batch;
    p.h_step = dense_h.step;
    const auto& dense_mask = keep(mask ? Dense<T>::whole(*mask, "mask", h) : Dense<T>());
    p.mask = dense_mask.data;
    p.mask_batch = p.time;

    set_cond(layers);
    for (size_t i = 0; i < layers.size(); ++i) {
      WnLayerArrays<T>& to = p.layer[i];
      const WnLayerTensors& from = layers[i];
      Tensor tap_major = from.conv_weight;
      tap_major = torch::stable::transpose(tap_major, 1, 2);
      to.conv_weight = whole(tap_major, "conv_weight");
      to.conv_bias = whole(from.conv_bias, "conv_bias");
      to.res_skip_weight = whole(from.res_skip_weight, "res_skip_weight");
      to.res_skip_bias = whole(from.res_skip_bias, "res_skip_bias");
      to.cond_weight = whole(from.cond_weight, "cond_weight");
      to.cond_bias = whole(from.cond_bias, "cond_bias");
      to.cond_bias_by_phase = from.cond_bias && from.cond_bias->dim() == 2;
      to.input_bias = whole(from.input_bias, "input_bias");
      to.dilation = static_cast<int32_t>(dilations[i]);
      to.left_padding = static_cast<int32_t>((p.kernel_size - 1) * dilations[i] / (causal ? 1 : 2));
    }
    if (unread_rows > 0) {
      WnLayerArrays<T>& last = p.layer[p.layers - 1];
      last.res_skip_weight += unread_rows * p.gate_channels;
      if (last.res_skip_bias) last.res_skip_bias += unread_rows;
    }

    const ScalarType wide = scalar_type_of<acc_t>;
    p.gate_add = scratch<acc_t>({p.layers, p.vector_batch, p.phases, 2 * p.gate_channels}, wide);
    if (layers[0].input_bias) {
      p.tap_batch = static_cast<int32_t>(layers[0].input_bias->size(0));
      p.tap_add = scratch<acc_t>({p.layers, p.tap_batch, p.kernel_size, 2 * p.gate_channels}, wide);
    }
    if (p.layers > 1) p.done = scratch<uint32_t>({wn_flags(p)}, ScalarType::Int);
  }

  // Memory that lives as long as this object.
  template <class V>
  V* scratch(std::initializer_list<int64_t> shape, ScalarType dtype) {
    owners_.push_back(empty_of(first_, shape, dtype));
    return writable<V>(owners_.back());
  }

  bool may_use_tensor_cores() const {
    // 16-byte copies of rows: Dense aligns them where the counts of channels allow
    const auto fits = [](int64_t channels) { return channels % 8 == 0; };
    return fits(params.channels) && fits(params.gate_channels) && fits(params.skip_channels) &&
           fits(params.cond == WnCond::kLocal || params.cond == WnCond::kProjected ? params.cond_channels : 0);
  }

  // Runs the stack on the kernel of the newest instruction set that the device has, this build holds and the sizes
  // allow.
  void run(bool tf32, const arch::OnDevice& on) const {
    launch_wn_vectors(params, on.stream());
    switch (choose(tf32, on.device())) {
#if FASTFLOW_HAS_SM90A
      case Kernel::kSm90:
        if constexpr (sizeof(T) == 2) launch_wn_sm90(params, on.device(), on.stream());
        break;
#endif
#if FASTFLOW_HAS_SM80
      case Kernel::kSm80:
        if constexpr (sizeof(T) <= 4) launch_wn_sm80(params, on.device(), on.stream());
        break;
#endif
      default:
        launch_wn_portable(params, on.device(), on.stream());
    }
  }

  void run_gate_backward(const WnGateBackwardParams<T>& p, bool tf32, const arch::OnDevice& on) const {
    launch_wn_vectors(params, on.stream());
#if FASTFLOW_HAS_SM80
    if constexpr (sizeof(T) <= 4) {
      if (choose(tf32, on.device()) != Kernel::kPortable) {
        launch_wn_gate_backward_sm80(p, on.device(), on.stream());
        return;
      }
    }
#endif
    launch_wn_gate_backward_portable(p, on.device(), on.stream());
  }

 private:
  enum class Kernel { kPortable, kSm80, kSm90 };

  Kernel choose(bool tf32, const arch::Device& device) const {
    if (sizeof(T) == 8 || (sizeof(T) == 4 && !tf32) || !may_use_tensor_cores()) return Kernel::kPortable;
#if FASTFLOW_HAS_SM90A
    if (sizeof(T) == 2 && device.capability == 90) return Kernel::kSm90;
#endif
#if FASTFLOW_HAS_SM80
    if (device.capability >= 80) return Kernel::kSm80;
#endif
    return Kernel::kPortable;
  }

  const Dense<T>& keep(Dense<T> dense) {
    if (dense.data) owners_.push_back(dense.owner);
    last_ = std::move(dense);
    return last_;
  }

  const T* whole(const OptionalTensor& tensor, const char* name) {
    return tensor ? keep(Dense<T>::whole(*tensor, name, first_)).data : nullptr;
  }

  void set_cond(const std::vector<WnLayerTensors>& layers) {
    WnParams<T>& p = params;
    p.vector_batch = 1;
    if (!layers[0].cond) return;
    const Tensor& cond = *layers[0].cond;
    const bool projected = !layers[0].cond_weight, global = cond.size(2) == 1 && p.frames != 1;
    p.cond = projected ? (global ? WnCond::kProjectedGlobal : WnCond::kProjected)
                       : (global ? WnCond::kGlobal : WnCond::kLocal);
    p.cond_channels = static_cast<int32_t>(cond.size(1));
    if (global) p.vector_batch = p.batch;
    for (size_t i = 0; i < layers.size(); ++i) {
      // one tensor for all layers, or each layer's rows of one: then each is turned on its own
      if (projected || i == 0) last_cond_ = Dense<T>::channels_last(*layers[i].cond, "cond", first_);
      owners_.push_back(last_cond_.owner);
      p.layer[i].cond = last_cond_.data;
      p.cond_batch = last_cond_.batch;
      p.cond_step = last_cond_.step;
    }
  }

  Tensor first_;
  std::vector<Tensor> owners_;
  Dense<T> last_, last_cond_;
};

}  // namespace fastflow
