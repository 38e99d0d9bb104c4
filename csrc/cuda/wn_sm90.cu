#include "kernels/wn_sm90_tiles.cuh"
#include "launch.h"

namespace fastflow {

template void launch_wn_sm90(const WnParams<arch::half>&, const arch::Device&, arch::Stream);
template void launch_wn_sm90(const WnParams<arch::bfloat16>&, const arch::Device&, arch::Stream);

}  // namespace fastflow
