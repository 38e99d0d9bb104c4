// Matrix products of a warpgroup (four warps) from shared memory (sm_90a).
#pragma once

#include <arch/memory.cuh>
#include <arch/sm90.cuh>
#include <type_traits>

namespace fastflow::arch {

#ifdef __CUDACC__

// Before the first wgmma, and whenever registers of `d` were touched since the last one.
__device__ __forceinline__ void wgmma_fence() { FASTFLOW_PTX_SM90A("wgmma.fence.sync.aligned;" :: : "memory"); }

// Ends a group of products; wgmma_wait<N> returns when at most N of this thread's groups are under way.
__device__ __forceinline__ void wgmma_commit() { FASTFLOW_PTX_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }

template <int N>
__device__ __forceinline__ void wgmma_wait() {
  FASTFLOW_PTX_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving uses of `d` to before this point: after the wait that ends products into it.
template <int COUNT>
__device__ __forceinline__ void wgmma_keep(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) FASTFLOW_PTX_SM90A("" : "+f"(d[i])::"memory");
}

// Describes rows of 128 bytes of K, swizzled as TMA does it, eight rows every 1024 bytes (which is the alignment). 16
// elements further along K are 32 bytes further in address. Fields: address and stride of eight rows in units of 16
// bytes, the unused leading stride 1, swizzle mode 1 (128 bytes).
__device__ __forceinline__ uint64_t wgmma_descriptor(shared_t address) {
  constexpr uint64_t kFixed = uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 16;
  return kFixed | (address & 0x3ffff) >> 4;
}

// The operands of one instruction: "%0, %1, ..." and the registers.
#define FASTFLOW_TEXT_32                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTFLOW_TEXT_64                                                             \
  FASTFLOW_TEXT_32                                                                   \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTFLOW_TEXT_128                                                                        \
  FASTFLOW_TEXT_64                                                                               \
  ", "                                                                                           \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FASTFLOW_REGISTERS_8(i)                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FASTFLOW_REGISTERS_32(i) \
  FASTFLOW_REGISTERS_8(i), FASTFLOW_REGISTERS_8(i + 8), FASTFLOW_REGISTERS_8(i + 16), FASTFLOW_REGISTERS_8(i + 24)
#define FASTFLOW_REGISTERS_64(i) FASTFLOW_REGISTERS_32(i), FASTFLOW_REGISTERS_32(i + 32)
#define FASTFLOW_REGISTERS_128(i) FASTFLOW_REGISTERS_64(i), FASTFLOW_REGISTERS_64(i + 64)
// A and B from shared memory, both K-major, not negated; %A, %B, %P are the operands after those of d.
#define FASTFLOW_WGMMA(N, TYPE, COUNT, A, B, P)                                                                   \
  FASTFLOW_PTX_SM90A(                                                                                             \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE \
      " {" FASTFLOW_TEXT_##COUNT "}, %" A ", %" B ", p, 1, 1, 0, 0;\n}" : FASTFLOW_REGISTERS_##COUNT(0) : "l"(a), \
      "l"(b), "r"(static_cast<int>(accumulate)))

// d[64 x N] (+)= a[64 x 16] b[N x 16]^T, asynchronously, by the 128 threads of a warpgroup. Warp w holds rows 16 w to
// 16 w + 15: thread t of it, in d[4 j] and d[4 j + 1], row t / 4, columns 8 j + t % 4 * 2 and the next; in d[4 j + 2]
// and d[4 j + 3] the same of row t / 4 + 8.
template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>);
  static_assert(N == 64 || N == 128 || N == 256);
  if constexpr (std::is_same_v<T, half>) {
    if constexpr (N == 64) FASTFLOW_WGMMA("64", "f16", 32, "32", "33", "34");
    if constexpr (N == 128) FASTFLOW_WGMMA("128", "f16", 64, "64", "65", "66");
    if constexpr (N == 256) FASTFLOW_WGMMA("256", "f16", 128, "128", "129", "130");
  } else {
    if constexpr (N == 64) FASTFLOW_WGMMA("64", "bf16", 32, "32", "33", "34");
    if constexpr (N == 128) FASTFLOW_WGMMA("128", "bf16", 64, "64", "65", "66");
    if constexpr (N == 256) FASTFLOW_WGMMA("256", "bf16", 128, "128", "129", "130");
  }
}

#undef FASTFLOW_TEXT_32
#undef FASTFLOW_TEXT_64
#undef FASTFLOW_TEXT_128
#undef FASTFLOW_REGISTERS_8
#undef FASTFLOW_REGISTERS_32
#undef FASTFLOW_REGISTERS_64
#undef FASTFLOW_REGISTERS_128
#undef FASTFLOW_WGMMA

#endif  // __CUDACC__

}  // namespace fastflow::arch
