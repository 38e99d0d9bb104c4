// What the torch-free side (*.cu) offers to the host side (*.cpp). Each function is instantiated in the .cu file of its
// stem for the types that its comment names; half and bfloat16 are those of <arch/platform.cuh>.
#pragma once

#include <arch/launch.cuh>

#include "../params.h"

namespace fastflow {

// Fills p.gate_add and p.tap_add. float, double, half, bfloat16.
template <class T>
void launch_wn_vectors(const WnParams<T>& p, arch::Stream stream);

// Run the stack. p.done needs wn_flags(p) entries of any content.
template <class T>
void launch_wn_portable(const WnParams<T>& p, const arch::Device& device, arch::Stream stream);  // all four types
template <class T>
void launch_wn_sm80(
    const WnParams<T>& p, const arch::Device& device, arch::Stream stream);  // half, bfloat16; float: tf32
template <class T>
void launch_wn_sm90(const WnParams<T>& p, const arch::Device& device, arch::Stream stream);  // half, bfloat16

template <class T>
void launch_wn_gate_backward_portable(
    const WnGateBackwardParams<T>& p, const arch::Device& device, arch::Stream stream);  // all four types
template <class T>
void launch_wn_gate_backward_sm80(
    const WnGateBackwardParams<T>& p, const arch::Device& device, arch::Stream stream);  // half, bfloat16; float: tf32

// How many counters the schedule of any kernel needs at most: none has shorter tiles than this.
constexpr int kWnShortestTile = 16;
template <class T>
int64_t wn_flags(const WnParams<T>& p) {
  return int64_t(p.layers) * p.batch * p.phases * ((p.frames + kWnShortestTile - 1) / kWnShortestTile);
}

// The small operations: all four types. None of these takes empty tensors.
template <class T>
void launch_gate(const GateParams<T>& p, arch::Stream stream);
template <class T>
void launch_gate_backward(const GateBackwardParams<T>& p, arch::Stream stream);

// p.row_log_det: [B, C, affine_coupling_parts], or null for the additive form.
template <class T>
int64_t affine_coupling_parts(int64_t time);
template <class T>
void launch_affine_coupling(const AffineCouplingParams<T>& p, accumulator_t<T>* log_det, arch::Stream stream);
template <class T>
void launch_affine_coupling_backward(const AffineCouplingBackwardParams<T>& p, arch::Stream stream);

// A weight of more channels than this needs memory to work in for its determinant and its inverse.
constexpr int64_t kInvConv1x1InShared = 32;
// How many parts the weight's gradient is summed in.
template <class T>
int64_t invconv1x1_parts(int64_t batch, int64_t channels, int64_t time, const arch::Device& device);
template <class T>
void launch_invconv1x1(const InvConv1x1ForwardParams<T>& p, arch::Stream stream);
template <class T>
void launch_invconv1x1_backward(const InvConv1x1BackwardParams<T>& p, arch::Stream stream);

template <class T>
void launch_actnorm(const ActNormForwardParams<T>& p, arch::Stream stream);
// How many elements p.parts needs.
template <class T>
int64_t actnorm_backward_parts(const ActNormParams<T>& p);
template <class T>
void launch_actnorm_backward(const ActNormBackwardParams<T>& p, arch::Stream stream);

// X and H one of the four types, or float with half or bfloat16. log_det: [B], or null where p.parts is.
constexpr int64_t kFlowStepTile = 32;  // steps of one part
template <class X, class H>
void launch_flow_step(
    const FlowStepParams<X, H>& p, accumulator_t<X>* log_det, const arch::Device& device, arch::Stream stream);

}  // namespace fastflow
