#include "kernels/wn_portable.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(T)                                                            \
  template void launch_wn_portable(const WnParams<T>&, const arch::Device&, arch::Stream); \
  template void launch_wn_gate_backward_portable(const WnGateBackwardParams<T>&, const arch::Device&, arch::Stream);

FASTFLOW_INSTANTIATE(float)
FASTFLOW_INSTANTIATE(double)
FASTFLOW_INSTANTIATE(arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16)

}  // namespace fastflow
