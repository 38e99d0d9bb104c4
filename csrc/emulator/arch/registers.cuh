// Model of csrc/cuda/arch/registers.cuh.
#pragma once

#include <arch/platform.cuh>

namespace fastflow::arch {

using emulator::Location;

template <int N>
void registers_release(Location at = Location::current()) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  emulator::registers_release(N, at);
}
template <int N>
void registers_acquire(Location at = Location::current()) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  emulator::registers_acquire(N, at);
}

}  // namespace fastflow::arch
