// Fibers: threads that hand over to each other by a function call. swapcontext() would do, but asks the system to
// change the signal mask each time, which costs more than everything else a model of `mma` does.
#pragma once

#include <cstddef>
#include <vector>

namespace fastflow::emulator {

// Saves the callee-saved registers on the running stack, stores its pointer in *from and goes on where `to` was saved.
extern "C" void fastflow_switch_stack(void** from, void* to);

// Stacks of one size, each above a page that may not be touched, kept for the next launch.
class Stacks {
 public:
  ~Stacks();

  // A stack that will call `entry` (which never returns) when it is switched to for the first time.
  void* prepare(size_t index, void (*entry)());

 private:
  static constexpr size_t kBytes = 256 << 10, kGuard = 4 << 10;
  std::vector<char*> stacks_;
};

}  // namespace fastflow::emulator
