#include "kernels/affine_coupling.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(T)                                                                          \
  template int64_t affine_coupling_parts<T>(int64_t);                                                    \
  template void launch_affine_coupling(const AffineCouplingParams<T>&, accumulator_t<T>*, arch::Stream); \
  template void launch_affine_coupling_backward(const AffineCouplingBackwardParams<T>&, arch::Stream);

FASTFLOW_INSTANTIATE(float)
FASTFLOW_INSTANTIATE(double)
FASTFLOW_INSTANTIATE(arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16)

}  // namespace fastflow
