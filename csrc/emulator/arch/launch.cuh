// Model of csrc/cuda/arch/launch.cuh: a launch runs the kernel to its end.
#pragma once

#include <arch/platform.cuh>
#include <stdexcept>
#include <string>

namespace fastflow::arch {

using Stream = void*;
using Device = emulator::DeviceModel;

inline void declare_memory(const void* base, size_t bytes) { emulator::declare_memory(base, bytes); }
inline void zero_async(void* base, size_t bytes, Stream) { std::memset(base, 0, bytes); }
inline const Device& device(int) { return emulator::device(); }
inline Stream current_stream(int) { return nullptr; }

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Grid grid;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;  // every launch here has the device to itself
};

inline emulator::Shape shape_of(const Launch& how) {
  return {{how.grid.x, how.grid.y, how.grid.z}, how.threads, how.shared_bytes, how.cluster};
}

template <class Params>
void launch(void (*kernel)(Params), const Params& params, const Launch& how, Stream) {
  emulator::run(shape_of(how), reinterpret_cast<const void*>(kernel), [kernel, &params] { kernel(params); });
}

template <class Params>
int resident_clusters(void (*)(Params), const Launch& how) {
  return emulator::resident_clusters(shape_of(how));
}

}  // namespace fastflow::arch
