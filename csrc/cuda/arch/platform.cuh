// What kernels take from the compiler: 16-bit types, conversions, mathematics, and what the target can do.
#pragma once

#ifndef __CUDACC__
// For other compilers params.h and the toolkit both define these words, as nothing.
#undef __host__
#undef __device__
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#ifndef __CUDACC__
#undef __host__
#undef __device__
#define __host__
#define __device__
#endif

#include <cstdint>
#include <type_traits>

#include "../../params.h"

// 1 where the instructions of sm_80 or of sm_90a may be used: in the device passes for such targets. Kernels put their
// bodies under them, so that a build for other targets too has an empty kernel there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define FASTFLOW_SM80 1
#else
#define FASTFLOW_SM80 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTFLOW_SM90A 1
#else
#define FASTFLOW_SM90A 0
#endif

namespace fastflow::arch {

using half = __half;
using bfloat16 = __nv_bfloat16;

#ifdef __CUDACC__

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(bfloat16 v) { return __bfloat162float(v); }

// threadIdx.x, read anew by each call: what is computed from it is not kept in registers from one use to the next.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float v) {
  if constexpr (std::is_same_v<T, half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    static_assert(std::is_same_v<T, float>);
    return v;
  }
}

// To and from the type of the arithmetic: double for double, float for all others.
template <class T>
__device__ __forceinline__ accumulator_t<T> widen(T v) {
  if constexpr (std::is_same_v<T, double>) {
    return v;
  } else {
    return to_float(v);
  }
}

template <class T>
__device__ __forceinline__ T narrow(accumulator_t<T> v) {
  if constexpr (std::is_same_v<T, double>) {
    return v;
  } else {
    return from_float<T>(v);
  }
}

// Two 16-bit numbers in one register, `lo` in the lower half, that is, first in memory.
template <class T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi) {
  uint32_t r;
  if constexpr (std::is_same_v<T, half>) {
    const __half2 v = __floats2half2_rn(lo, hi);
    __builtin_memcpy(&r, &v, 4);
  } else {
    static_assert(std::is_same_v<T, bfloat16>);
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    __builtin_memcpy(&r, &v, 4);
  }
  return r;
}

template <class T>
__device__ __forceinline__ void unpack2(uint32_t r, float& lo, float& hi) {
  if constexpr (std::is_same_v<T, half>) {
    __half2 v;
    __builtin_memcpy(&v, &r, 4);
    lo = __low2float(v);
    hi = __high2float(v);
  } else {
    static_assert(std::is_same_v<T, bfloat16>);
    lo = __uint_as_float(r << 16);
    hi = __uint_as_float(r & 0xffff0000u);
  }
}

// One instruction, relative error 2^-11: for results that are rounded to 16 bits.
__device__ __forceinline__ float tanh_approx(float v) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Accurate to a few units in the last place.
__device__ __forceinline__ float tanh(float v) { return ::tanhf(v); }
__device__ __forceinline__ double tanh(double v) { return ::tanh(v); }
__device__ __forceinline__ float exp(float v) { return ::expf(v); }
__device__ __forceinline__ double exp(double v) { return ::exp(v); }
__device__ __forceinline__ float log(float v) { return ::logf(v); }
__device__ __forceinline__ double log(double v) { return ::log(v); }
__device__ __forceinline__ float log1p(float v) { return ::log1pf(v); }
__device__ __forceinline__ double log1p(double v) { return ::log1p(v); }
__device__ __forceinline__ float abs(float v) { return ::fabsf(v); }
__device__ __forceinline__ double abs(double v) { return ::fabs(v); }

#endif  // __CUDACC__

}  // namespace fastflow::arch
