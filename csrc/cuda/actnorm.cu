#include "kernels/actnorm.cuh"
#include "launch.h"

namespace fastflow {

#define FASTFLOW_INSTANTIATE(T)                                               \
  template int64_t actnorm_backward_parts(const ActNormParams<T>&);           \
  template void launch_actnorm(const ActNormForwardParams<T>&, arch::Stream); \
  template void launch_actnorm_backward(const ActNormBackwardParams<T>&, arch::Stream);

FASTFLOW_INSTANTIATE(float)
FASTFLOW_INSTANTIATE(double)
FASTFLOW_INSTANTIATE(arch::half)
FASTFLOW_INSTANTIATE(arch::bfloat16)

}  // namespace fastflow
