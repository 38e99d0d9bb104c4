#include "kernels/invconv1x1.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(T)                                                         \
  template int64_t invconv1x1_parts<T>(int64_t, int64_t, int64_t, const arch::Device&); \
  template void launch_invconv1x1(const InvConv1x1ForwardParams<T>&, arch::Stream);     \
  template void launch_invconv1x1_backward(const InvConv1x1BackwardParams<T>&, arch::Stream);

FASTFLOW_INSTANTIATE(float)
FASTFLOW_INSTANTIATE(double)
FASTFLOW_INSTANTIATE(arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16)

}  // namespace fastflow
