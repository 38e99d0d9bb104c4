// Registers handed from one warpgroup to others (sm_90a): all warps of the warpgroup call it with the same N, a
// multiple of 8 from 24 to 256. The kernel needs __launch_bounds__(threads, 1).
#pragma once

#include <arch/sm90.cuh>

namespace fastflow::arch {

#ifdef __CUDACC__

// Keep N registers per thread, give the rest back.
template <int N>
__device__ __forceinline__ void registers_release() {
  FASTFLOW_PTX_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Have N registers per thread; waits until others have released enough.
template <int N>
__device__ __forceinline__ void registers_acquire() {
  FASTFLOW_PTX_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
