// What the wrappers of Hopper's instructions share: PTX that exists for sm_90a only. Elsewhere the statement traps, so
// that a kernel still compiles in a build for other architectures, where the host never launches it.
#pragma once

#include <arch/platform.cuh>

#if FASTFLOW_SM90A
#define FASTFLOW_PTX_SM90A(...) asm volatile(__VA_ARGS__)
#elif defined(__CUDA_ARCH__)
#define FASTFLOW_PTX_SM90A(...) __trap()
#else
#define FASTFLOW_PTX_SM90A(...) (void)0  // the host's pass over device code
#endif
