// Model of csrc/cuda/arch/tma.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

struct alignas(64) TensorMap {
  emulator::TensorMap model;
};

template <class T>
TensorMap make_tensor_map(
    const void* base, const uint64_t (&dims)[4], const uint64_t (&strides)[3], const uint32_t (&box)[4]) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>);
  return {emulator::make_tensor_map(base, sizeof(T), dims, strides, box)};
}

inline void tma_load(
    shared_t dst, const TensorMap* map, shared_t barrier, int c0, int c1, int c2, int c3,
    Location at = Location::current()) {
  emulator::tma_load(dst, map->model, barrier, {c0, c1, c2, c3}, 0, false, at);
}
inline void tma_load_multicast(
    shared_t dst, const TensorMap* map, shared_t barrier, int c0, int c1, int c2, int c3, uint16_t blocks,
    Location at = Location::current()) {
  emulator::tma_load(dst, map->model, barrier, {c0, c1, c2, c3}, blocks, true, at);
}
inline void tma_prefetch_map(const TensorMap*) {}
inline void fence_proxy_async(Location at = Location::current()) { emulator::fence_proxy_async(at); }
inline void fence_proxy_async_shared(Location at = Location::current()) { emulator::fence_proxy_async_shared(at); }

}  // namespace fastflow::arch
