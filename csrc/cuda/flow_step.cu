#include "kernels/flow_step.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(X, H) \
  template void launch_flow_step(const FlowStepParams<X, H>&, accumulator_t<X>*, const arch::Device&, arch::Stream);

FASTFLOW_INSTANTIATE(float, float)
FASTFLOW_INSTANTIATE(float, arch::half)
FASTFLOW_INSTANTIATE(float, arch::bfloat16)
FASTFLOW_INSTANTIATE(double, double)
FASTFLOW_INSTANTIATE(arch::half, arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16, arch::bfloat16)

}  // namespace fastflow
