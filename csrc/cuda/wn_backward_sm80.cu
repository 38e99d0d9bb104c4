#include "kernels/wn_backward_sm80.cuh"
#include "launch.h"

namespace fastflow {

template void launch_wn_gate_backward_sm80(const WnGateBackwardParams<float>&, const arch::Device&, arch::Stream);
template void launch_wn_gate_backward_sm80(const WnGateBackwardParams<arch::half>&, const arch::Device&, arch::Stream);
template void launch_wn_gate_backward_sm80(
    const WnGateBackwardParams<arch::bfloat16>&, const arch::Device&, arch::Stream);

}  // namespace fastflow
