// Loads, stores, atomic operations and flags; cp.async.
#include <cstring>

#include "model.h"

namespace fastflow::emulator {

void check_shared(const Block& block, uint32_t address, size_t bytes, size_t alignment, const Site& site) {
  if (address % alignment != 0) {
    fail(site, "shared memory at ", hex(address), " is not on a boundary of ", alignment, " bytes");
  }
  const uint64_t end = kSharedBase + block.shared.size();
  if (address < kSharedBase || address + bytes > end) {
    fail(
        site, "shared memory from ", hex(address), " to ", hex(address + bytes), " is outside of the block's, from ",
        hex(kSharedBase), " to ", hex(end));
  }
}

Shadow* check_global(const void* address, size_t bytes, size_t alignment, const Site& site) {
  if (reinterpret_cast<uint64_t>(address) % alignment != 0) {
    fail(site, "global memory at ", address, " is not on a boundary of ", alignment, " bytes");
  }
  if (!launch->watches_memory()) return nullptr;
  Shadow* shadow = launch->find_memory(address, bytes);
  if (!shadow) fail(site, bytes, " bytes of global memory at ", address, " are in none of the kernel's tensors");
  return shadow;
}

const void* load_shared(uint32_t address, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kLoadShared, at);
  site.bytes = static_cast<uint32_t>(bytes);
  Block& block = *self->block;
  address += static_cast<uint32_t>(site.shift[0]);
  check_shared(block, address, bytes, bytes, site);
  const Actor actor = self->actor(site);
  block.shadow->read(address, bytes, &actor, 1);
  launch->statistics.shared_read += bytes;
  return block.bytes(address);
}

void* store_shared(uint32_t address, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kStoreShared, at);
  site.bytes = static_cast<uint32_t>(bytes);
  Block& block = *self->block;
  address += static_cast<uint32_t>(site.shift[0]);
  check_shared(block, address, bytes, bytes, site);
  block.shadow->write(address, bytes, self->actor(site));
  launch->statistics.shared_written += bytes;
  return block.bytes(address);
}

const void* load_global(const void* address, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kLoadGlobal, at);
  site.bytes = static_cast<uint32_t>(bytes);
  const char* from = static_cast<const char*>(address) + site.shift[0];
  if (Shadow* shadow = check_global(from, bytes, bytes, site)) {
    const Actor actor = self->actor(site);
    shadow->read(reinterpret_cast<uint64_t>(from), bytes, &actor, 1);
  }
  launch->statistics.global_read += bytes;
  return from;
}

void* store_global(void* address, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kStoreGlobal, at);
  site.bytes = static_cast<uint32_t>(bytes);
  char* to = static_cast<char*>(address) + site.shift[0];
  if (Shadow* shadow = check_global(to, bytes, bytes, site)) {
    shadow->write(reinterpret_cast<uint64_t>(to), bytes, self->actor(site));
  }
  launch->statistics.global_written += bytes;
  return to;
}

void stored_global(void* address) {
  if (!launch->flag_waiters.empty()) launch->wake_flag(address);
}

void* atomic_begin(void* address, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kAtomicAdd, at);
  site.bytes = static_cast<uint32_t>(bytes);
  char* to = static_cast<char*>(address) + site.shift[0];
  if (Shadow* shadow = check_global(to, bytes, bytes, site)) {
    shadow->atomic(reinterpret_cast<uint64_t>(to), bytes, self->actor(site));
  }
  // relaxed: tells what was known at the last fence(), and the next fence() learns what it found
  ViewRef& visible = launch->told_by(to);
  self->seen_by_atomics = views->join(self->seen_by_atomics, visible);
  if (self->fence_view) {
    Gather told;
    told.add(visible);
    told.add(self->fence_view, self->fence_stamp);
    visible = told.join();
  }
  return to;
}

void atomic_end(void* address) { stored_global(address); }

void fence(const Location& at) {
  const Site& site = enter(Kind::kFence, at);
  if (site.skipped) return;
  self->acquire(self->seen_by_atomics);
  self->fence_view = self->view;
  self->fence_stamp = self->stamp();
  ++self->tick;
}

namespace {

const uint32_t* check_flag(const uint32_t* flag, const Site& site) {
  flag = reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(flag) + site.shift[0]);
  if (Shadow* shadow = check_global(flag, 4, 4, site)) {
    shadow->atomic_read(reinterpret_cast<uint64_t>(flag), 4, self->actor(site));
  }
  return flag;
}

}  // namespace

uint32_t load_acquire(const uint32_t* flag, const Location& at) {
  Site& site = enter(Kind::kLoadAcquire, at);
  site.bytes = 4;
  launch->let_others_run();  // kernels call it in loops
  flag = check_flag(flag, site);
  self->acquire(launch->told_by(flag));
  return *flag;
}

void add_release(uint32_t* flag, uint32_t value, const Location& at) {
  Site& site = enter(Kind::kAddRelease, at);
  site.bytes = 4;
  if (site.skipped) return;
  flag = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(flag) + site.shift[0]);
  if (Shadow* shadow = check_global(flag, 4, 4, site)) {
    shadow->atomic(reinterpret_cast<uint64_t>(flag), 4, self->actor(site));
  }
  ViewRef& visible = launch->told_by(flag);
  Gather told;
  told.add(visible);
  self->release(told);
  visible = told.join();
  *flag += value;
  stored_global(flag);
}

void wait_at_least(const uint32_t* flag, uint32_t value, const Location& at) {
  Site& site = enter(Kind::kWaitAtLeast, at);
  site.bytes = 4;
  if (site.skipped) return;
  value += static_cast<uint32_t>(site.shift[1]);
  flag = check_flag(flag, site);
  while (*flag < value) {
    launch->flag_waiters.push_back(self);
    launch->block(Waits::kFlag, site, flag, value);
  }
  self->acquire(launch->told_by(flag));
}

// ---------------------------------------------------------------------------------------------------------- cp.async

namespace {

void land_copy(Block& block, Copy& copy) {
  if (copy.valid) {
    std::memcpy(block.bytes(copy.dst), copy.src, 16);
  } else {
    std::memset(block.bytes(copy.dst), 0, 16);
  }
  copy.landed = true;
}

}  // namespace

void copy_async_16(uint32_t dst, const void* src, bool valid, const Location& at) {
  Site& site = enter(Kind::kCopyAsync, at);
  site.bytes = 16;
  Block& block = *self->block;
  dst += static_cast<uint32_t>(site.shift[0]);
  src = static_cast<const char*>(src) + site.shift[1];
  check_shared(block, dst, 16, 16, site);
  Actor actor = self->actor(site);
  if (Shadow* shadow = check_global(src, 16, 16, site); shadow && valid) {
    shadow->read(reinterpret_cast<uint64_t>(src), 16, &actor, 1);
  }
  actor.in_flight = true;
  block.shadow->write(dst, 16, actor);
  Copy copy = {dst, src, valid, false};
  if (!launch->late_now()) land_copy(block, copy);
  self->open_copies.push_back(copy);
  launch->statistics.copied += 16;
}

void copy_commit(const Location& at) {
  const Site& site = enter(Kind::kCopyCommit, at);
  if (site.skipped) return;
  self->copy_groups.push_back(std::move(self->open_copies));
  self->open_copies.clear();
}

void copy_wait(int groups, const Location& at) {
  const Site& site = enter(Kind::kCopyWait, at);
  if (site.skipped) return;
  groups += static_cast<int>(site.shift[0]);
  Block& block = *self->block;
  while (static_cast<int>(self->copy_groups.size()) > groups) {
    for (Copy& copy : self->copy_groups.front()) {
      if (!copy.landed) land_copy(block, copy);
      block.shadow->land(copy.dst, 16, self->id, self->tick);
    }
    self->copy_groups.pop_front();
  }
}

}  // namespace fastflow::emulator
