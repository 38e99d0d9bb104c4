#include "kernels/wn_vectors.cuh"
#include "launch.h"

namespace fastflow {

template void launch_wn_vectors(const WnParams<float>&, arch::Stream);
template void launch_wn_vectors(const WnParams<double>&, arch::Stream);
template void launch_wn_vectors(const WnParams<arch::half>&, arch::Stream);
template void launch_wn_vectors(const WnParams<arch::bfloat16>&, arch::Stream);

}  // namespace fastflow
