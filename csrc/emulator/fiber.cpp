#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace fastflow::emulator {

#if defined(__x86_64__)
asm(R"(
.text
.globl fastflow_switch_stack
.type fastflow_switch_stack, @function
fastflow_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastflow_switch_stack, .-fastflow_switch_stack
)");
constexpr int kSavedWords = 8;  // six registers, the return address, and a null return address below the first frame
constexpr int kEntryWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl fastflow_switch_stack
.type fastflow_switch_stack, @function
fastflow_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size fastflow_switch_stack, .-fastflow_switch_stack
)");
constexpr int kSavedWords = 20;
constexpr int kEntryWord = 11;  // x30
#else
#error "the emulator knows x86-64 and aarch64"
#endif

Stacks::~Stacks() {
  for (char* stack : stacks_) munmap(stack, kBytes);
}

void* Stacks::prepare(size_t index, void (*entry)()) {
  while (stacks_.size() <= index) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    stacks_.push_back(static_cast<char*>(memory));
  }
  // Stacks start at different offsets in their pages, or else all of them would live in the same few cache lines.
  const size_t colour = index % 29 * 256;
  auto* top = reinterpret_cast<uint64_t*>(stacks_[index] + kBytes - colour) - kSavedWords;
  std::memset(top, 0, kSavedWords * sizeof(uint64_t));
  const auto address = reinterpret_cast<uint64_t>(entry);
  std::memcpy(top + kEntryWord, &address, sizeof(address));
  return top;
}

}  // namespace fastflow::emulator
