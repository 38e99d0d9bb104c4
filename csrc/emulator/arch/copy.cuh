// Model of csrc/cuda/arch/copy.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

inline void copy_async_16(shared_t dst, const void* src, bool valid, Location at = Location::current()) {
  emulator::copy_async_16(dst, src, valid, at);
}
inline void copy_commit(Location at = Location::current()) { emulator::copy_commit(at); }
template <int N>
void copy_wait(Location at = Location::current()) {
  emulator::copy_wait(N, at);
}

}  // namespace fastflow::arch
