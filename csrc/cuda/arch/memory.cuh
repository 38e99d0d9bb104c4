// Loads, stores and flags. Kernels reach memory only through these, so that a model can watch every access.
#pragma once

#include <arch/platform.cuh>

namespace fastflow::arch {

using ::uint4;

// Byte address in the block's window of shared memory.
using shared_t = uint32_t;

#ifdef __CUDACC__

// The integer that moves sizeof(V) bytes in one access.
template <class V>
using access_t = std::conditional_t<
    sizeof(V) == 16, uint4,
    std::conditional_t<
        sizeof(V) == 8, uint64_t,
        std::conditional_t<sizeof(V) == 4, uint32_t, std::conditional_t<sizeof(V) == 2, uint16_t, uint8_t>>>>;

template <class To, class From>
__device__ __forceinline__ To bits_to(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To>);
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// The first byte of the dynamic shared memory, on a boundary of 1024 bytes: no kernel has static shared memory, and
// dynamic shared memory alone starts there.
__device__ __forceinline__ shared_t shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return static_cast<shared_t>(__cvta_generic_to_shared(dynamic_shared_memory));
}

// V: 1, 2, 4, 8 or 16 bytes, at a multiple of its size.
template <class V>
__device__ __forceinline__ V load_shared(shared_t address) {
  using A = access_t<V>;
  static_assert(sizeof(V) == sizeof(A));
  A a;
  if constexpr (sizeof(A) == 16) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
                 : "r"(address)
                 : "memory");
  } else if constexpr (sizeof(A) == 8) {
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(a) : "r"(address) : "memory");
  } else if constexpr (sizeof(A) == 4) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(a) : "r"(address) : "memory");
  } else if constexpr (sizeof(A) == 2) {
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(a) : "r"(address) : "memory");
  } else {
    uint16_t wide;
    asm volatile("ld.shared.u8 %0, [%1];" : "=h"(wide) : "r"(address) : "memory");
    a = static_cast<uint8_t>(wide);
  }
  return bits_to<V>(a);
}

template <class V>
__device__ __forceinline__ void store_shared(shared_t address, V v) {
  using A = access_t<V>;
  static_assert(sizeof(V) == sizeof(A));
  const A a = bits_to<A>(v);
  if constexpr (sizeof(A) == 16) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w)
                 : "memory");
  } else if constexpr (sizeof(A) == 8) {
    asm volatile("st.shared.u64 [%0], %1;" ::"r"(address), "l"(a) : "memory");
  } else if constexpr (sizeof(A) == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(a) : "memory");
  } else if constexpr (sizeof(A) == 2) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(a) : "memory");
  } else {
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(a)) : "memory");
  }
}

template <class V>
__device__ __forceinline__ V load_global(const void* address) {
  using A = access_t<V>;
  static_assert(sizeof(V) == sizeof(A));
  const A a = *static_cast<const A*>(address);  // a copy, whose alignment is known
  return bits_to<V>(a);
}

template <class V>
__device__ __forceinline__ void store_global(void* address, V v) {
  using A = access_t<V>;
  static_assert(sizeof(V) == sizeof(A));
  const A a = bits_to<A>(v);
  *static_cast<A*>(address) = a;
}

// Returns the value before; relaxed.
__device__ __forceinline__ float atomic_add(float* address, float v) { return atomicAdd(address, v); }
__device__ __forceinline__ double atomic_add(double* address, double v) { return atomicAdd(address, v); }
__device__ __forceinline__ uint32_t atomic_add(uint32_t* address, uint32_t v) { return atomicAdd(address, v); }

// Flags between blocks. What a thread stored before add_release (or before a barrier that led to it) is seen by whoever
// reads the flag with load_acquire (and by threads behind a barrier after it).
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
__device__ __forceinline__ void add_release(uint32_t* flag, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
__device__ __forceinline__ void wait_at_least(const uint32_t* flag, uint32_t value) {
  while (load_acquire(flag) < value) __nanosleep(32);
}
__device__ __forceinline__ void fence() { __threadfence(); }

#endif  // __CUDACC__

}  // namespace fastflow::arch
