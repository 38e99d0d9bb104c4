#include "kernels/gate.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(T)                                  \
  template void launch_gate(const GateParams<T>&, arch::Stream); \
  template void launch_gate_backward(const GateBackwardParams<T>&, arch::Stream);

FASTFLOW_INSTANTIATE(float)
FASTFLOW_INSTANTIATE(double)
FASTFLOW_INSTANTIATE(arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16)

}  // namespace fastflow
