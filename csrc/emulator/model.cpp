// The launch: blocks on the pretended multiprocessors, whose turn it is, and what is said when something is wrong.
#include "model.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "control.h"

namespace fastflow::emulator {

Launch* launch = nullptr;
Thread* self = nullptr;
Stacks stacks;
Index thread_index, block_index, grid_size, block_size;

namespace {

std::mutex one_launch;
Settings current_settings;
std::vector<Statistics> finished;

struct Range {
  uint64_t begin, end;
};
std::vector<Range> declared;
bool declared_for_a_launch = false;  // that has run: the next declaration starts anew

std::string text_of(const Index& index) { return text("(", index.x, ",", index.y, ",", index.z, ")"); }

std::string name_of_kernel(const void* kernel) {
  Dl_info symbol{};
  if (!dladdr(kernel, &symbol) || !symbol.dli_sname || symbol.dli_saddr != kernel) return "a kernel";
  int status = 0;
  char* plain = abi::__cxa_demangle(symbol.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : symbol.dli_sname;
  std::free(plain);
  name = name.substr(0, name.rfind('('));
  for (const std::string part : {"void ", "fastflow::", "arch::"}) {
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, part.size());
  }
  return name;
}

std::string text_of(const Shadow::Collision& found) {
  if (found.fault == Shadow::Fault::kUnwritten) return "reads what nobody has written";
  if (found.fault == Shadow::Fault::kBarrierWord) return "touches the words of an mbarrier";
  const std::string other = launch->name_of(found.other, found.tick), where = sites.at(found.site).text();
  switch (found.fault) {
    case Shadow::Fault::kInFlight:
      return text("touches what an asynchronous copy (", where, ", of ", other, ") has yet to write");
    case Shadow::Fault::kReadOfWrite:
      return text("reads what ", other, " wrote (", where, "), and nothing orders the two");
    case Shadow::Fault::kWriteOfWrite:
      return text("writes over what ", other, " wrote (", where, "), and nothing orders the two");
    case Shadow::Fault::kWriteOfRead:
      return text("writes over what ", other, " reads (", where, "), and nothing orders the two");
    default:  // kProxy
      return text(
          "goes through the async proxy to what ", other, " wrote (", where,
          "), and a fence_proxy_async is missing: by the writer after it, or, if that is another block's, by this "
          "thread too");
  }
}

uint64_t clusters_of(const Shape& shape) {
  return uint64_t(shape.grid.x) * shape.grid.y * shape.grid.z / shape.cluster;
}

int resident(const Shape& shape) {
  return static_cast<int>(std::min<uint64_t>(resident_clusters(shape), clusters_of(shape)));
}

int ids_of_block(const Shape& shape) { return shape.threads + kMostMbarriers + 4 * kMostWarpgroups; }

void check_launch(const Shape& shape, const std::string& kernel) {
  const auto refuse = [&](const std::string& why) { throw EmulationError(kernel + ": invalid launch: " + why); };
  const DeviceModel& d = device();
  const Index& grid = shape.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    refuse("a grid of " + text_of(grid));
  }
  if (shape.threads <= 0 || shape.threads > 1024) refuse(text("blocks of ", shape.threads, " threads"));
  if (shape.shared_bytes > d.shared_per_block) {
    refuse(text(shape.shared_bytes, " bytes of shared memory; the device has ", d.shared_per_block, " for a block"));
  }
  if (shape.cluster < 1 || shape.cluster > 8 || grid.x % shape.cluster != 0) {
    refuse(text("clusters of ", shape.cluster, " (at most 8) in a grid of ", text_of(grid)));
  }
  if (shape.cluster > 1 && d.capability < 90) refuse("clusters need sm_90");
  if (resident(shape) * shape.cluster * ids_of_block(shape) >= kHost) {
    refuse("the pretended device holds more threads at once than the model can number");
  }
}

}  // namespace

Settings& settings() { return current_settings; }
std::vector<Statistics>& statistics() { return finished; }

void report(const Shadow::Collision& found, const Actor& actor, bool shared) {
  throw EmulationError(text(
      launch->kernel, ": ", launch->name_of(actor.self, actor.tick), ", ", sites.at(actor.site).text(), ": ",
      text_of(found), "; ", shared ? "shared" : "global", " memory at ", hex(found.address)));
}

std::string hex(uint64_t value) {
  std::ostringstream to;
  to << "0x" << std::hex << value;
  return to.str();
}

std::string describe(const Thread& thread) {
  return text(
      "thread ", thread.index, " of block ", text_of(thread.block->index), " (warp ", thread.warp->index, ", lane ",
      thread.lane, ")");
}

void fail_at(const Thread* thread, const Site* site, const std::string& what) {
  throw EmulationError(text(
      launch ? launch->kernel : "", ": ", thread ? describe(*thread) + ", " : "", site ? site->text() + ": " : "",
      what));
}

Site& enter(Kind kind, const std::source_location& at) {
  if (self == nullptr) throw EmulationError("a device function was called outside of a kernel");
  Site& site = sites.find(kind, at);
  ++site.calls;
  ++launch->statistics.calls;
  launch->maybe_preempt();
  return site;
}

// ---------------------------------------------------------------------------------------------------- the host's side

const DeviceModel& device() { return current_settings.device; }

void declare_memory(const void* base, size_t bytes) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (declared_for_a_launch) declared.clear();
  declared_for_a_launch = false;
  const auto begin = reinterpret_cast<uint64_t>(base);
  if (base && bytes) declared.push_back({begin, begin + bytes});
}

int resident_clusters(const Shape& shape) {
  const DeviceModel& d = device();
  const int most_threads = d.capability == 75 ? 1024 : d.capability == 80 || d.capability / 10 >= 9 ? 2048 : 1536;
  if (shape.threads > 1024) return 0;
  const int by_threads = most_threads / std::max(32, shape.threads);
  const int reserved = d.capability >= 80 ? 1024 : 0;  // by the system, for each block
  const int by_memory = d.shared_per_multiprocessor / std::max(1, shape.shared_bytes + reserved);
  const int blocks = std::min({by_threads, by_memory, current_settings.blocks_per_multiprocessor});
  if (blocks == 0) return 0;
  // Even a small pretended device has room for one cluster.
  return std::max(1, blocks * d.multiprocessors / shape.cluster);
}

void run(const Shape& shape, const void* kernel, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::string name = name_of_kernel(kernel);
  struct Reset {
    ~Reset() {
      launch = nullptr;
      self = nullptr;
      declared_for_a_launch = true;
    }
  } reset;
  check_launch(shape, name);
  Launch running(shape, name, body, current_settings.schedule);
  running.run();
  finished.push_back(running.statistics);
  constexpr size_t kept = 64;
  if (finished.size() > kept) finished.erase(finished.begin());
}

Launch::Launch(const Shape& shape, std::string kernel_name, const std::function<void()>& body, const Schedule& how)
    : schedule(how),
      kernel(std::move(kernel_name)),
      shape_(shape),
      body_(body),
      ids_per_block_(ids_of_block(shape)),
      resident_(resident(shape)),
      views_(static_cast<uint32_t>(resident_ * shape.cluster * ids_per_block_)),
      all_clusters_(clusters_of(shape)),
      random_(static_cast<unsigned>(how.seed * 2654435761u + 1)) {
  launch = this;
  const int slots = resident_ * shape.cluster, warps_per_block = (shape.threads + 31) / 32;
  sources_.resize(size_t(slots) * ids_per_block_);
  uint16_t source = 0;
  for (size_t id = 0; id < sources_.size(); ++id) {
    const size_t in_block = id % ids_per_block_;
    if (in_block >= size_t(shape.threads) || in_block % 32 == 0) ++source;
    sources_[id] = source;
    parts_.push_back(in_block >= size_t(shape.threads + kMostMbarriers) ? 4 : 1);
  }
  source_of = sources_.data();
  parts_of = parts_.data();
  ids_per_block = ids_per_block_;
  ticks_.assign(sources_.size(), 0);
  clusters_.resize(resident_);
  warps_.resize(slots * warps_per_block);
  ready_.resize((warps_.size() + 63) / 64);
  statistics.kernel = kernel;
  statistics.blocks = all_clusters_ * shape.cluster;
  statistics.threads = statistics.blocks * shape.threads;
  grid_size = shape.grid;
  block_size = {static_cast<unsigned>(shape.threads), 1, 1};

  std::vector<Range> ranges = declared;
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 0; i < ranges.size();) {
    Range merged = ranges[i];
    for (++i; i < ranges.size() && ranges[i].begin <= merged.end; ++i) merged.end = std::max(merged.end, ranges[i].end);
    memory_.push_back(std::make_unique<Shadow>(merged.begin, merged.end - merged.begin, false));
  }
}

Launch::~Launch() {
  source_of = nullptr;
  parts_of = nullptr;
}

// --------------------------------------------------------------------------------------------- blocks come and leave

void fiber_main() {
  try {
    launch->body_();
    launch->finish_thread();
  } catch (...) {
    launch->error_ = std::current_exception();
  }
  // Nothing comes back here. The main loop ends the launch, or starts another cluster, or finds a deadlock.
  try {
    if (!launch->error_ && self->block->cluster->alive > 0) launch->switch_away();
  } catch (...) {
    launch->error_ = std::current_exception();
  }
  fastflow_switch_stack(&self->stack_pointer, launch->main_stack_);
  std::abort();
}

void Launch::start_block(Block& block, int slot, Index index) {
  block.slot = slot;
  block.index = index;
  block.threads = block.alive = shape_.threads;
  block.shared.resize(shape_.shared_bytes);
  block.shadow = std::make_unique<Shadow>(kSharedBase, shape_.shared_bytes, true);
  const int warps = (shape_.threads + 31) / 32, first_id = slot * ids_per_block_;
  const ViewRef nothing = views_.nothing();
  // what ptxas may give each thread under __launch_bounds__(threads, 1)
  const int registers = std::min(255, 65536 / (warps * 32)) / 8 * 8;
  block.free_registers = 65536 - registers * warps * 32;
  for (int w = 0; w < warps; ++w) {
    block.warps.push_back(std::make_unique<Warp>());
    Warp& warp = *block.warps.back();
    warp.block = &block;
    warp.index = w;
    warp.slot = slot * warps + w;
    warp.registers = registers;
    const int lanes = std::min(32, shape_.threads - w * 32);
    warp.all = warp.alive = warp.runnable = lanes == 32 ? kAllLanes : (1u << lanes) - 1;
    for (int lane = 0; lane < lanes; ++lane) {
      Thread& thread = warp.lanes[lane];
      thread.warp = &warp;
      thread.block = &block;
      thread.lane = lane;
      thread.index = w * 32 + lane;
      thread.id = static_cast<Id>(first_id + thread.index);
      thread.birth = thread.tick = ticks_[thread.id] + 1;
      thread.view = nothing;
      thread.stack_pointer = stacks.prepare(size_t(slot) * shape_.threads + thread.index, fiber_main);
    }
    warps_[warp.slot] = &warp;
    ready_[warp.slot / 64] |= uint64_t(1) << warp.slot % 64;
  }
  for (int i = 0; i < warps / 4; ++i) {
    Warpgroup& group = block.warpgroups.emplace_back();
    group.block = &block;
    group.first_warp = 4 * i;
    group.id = static_cast<Id>(first_id + shape_.threads + kMostMbarriers + 4 * i);
    group.start = ticks_[group.id];
  }
}

void Launch::start_clusters() {
  for (int slot = 0; slot < resident_ && next_cluster_ < all_clusters_; ++slot) {
    if (clusters_[slot]) continue;
    clusters_[slot] = std::make_unique<Cluster>();
    Cluster& cluster = *clusters_[slot];
    for (int rank = 0; rank < shape_.cluster; ++rank) {
      const uint64_t block = next_cluster_ * shape_.cluster + rank;
      const Index index = {
          static_cast<unsigned>(block % shape_.grid.x), static_cast<unsigned>(block / shape_.grid.x % shape_.grid.y),
          static_cast<unsigned>(block / shape_.grid.x / shape_.grid.y)};
      cluster.blocks.push_back(std::make_unique<Block>());
      cluster.blocks.back()->cluster = &cluster;
      cluster.blocks.back()->rank = rank;
      start_block(*cluster.blocks.back(), slot * shape_.cluster + rank, index);
    }
    cluster.alive = shape_.cluster;
    ++next_cluster_;
  }
}

void Launch::retire_clusters() {
  for (auto& cluster : clusters_) {
    if (!cluster || cluster->alive > 0) continue;
    for (auto& block : cluster->blocks) {
      for (auto& warp : block->warps) {
        for (const Thread& thread : warp->lanes) {
          if (thread.block) ticks_[thread.id] = thread.tick;
        }
        warps_[warp->slot] = nullptr;
        if (current_ == warp.get()) current_ = nullptr;
      }
      for (const auto& barrier : block->mbarriers) ticks_[barrier->id] = barrier->start + barrier->phase;
      for (const Warpgroup& group : block->warpgroups) ticks_[group.id] = group.start + group.issued;
    }
    cluster.reset();
  }
}

void Launch::finish_thread() {
  Thread& me = *self;
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  if (warp.gathered) {
    fail_at(&me, nullptr, text("leaves the kernel while other lanes of its warp are in ", warp.site->text()));
  }
  for (const auto& group : me.copy_groups) {
    if (!group.empty()) fail_at(&me, nullptr, "leaves the kernel with copies (copy_async_16) that it never waited for");
  }
  if (!me.open_copies.empty()) {
    fail_at(&me, nullptr, "leaves the kernel with copies (copy_async_16) that it never committed");
  }
  me.done = true;
  warp.alive &= ~bit;
  warp.runnable &= ~bit;
  if (!warp.runnable) ready_[warp.slot / 64] &= ~(uint64_t(1) << warp.slot % 64);
  Block& block = *me.block;
  me.release(block.at_exit);
  if (--block.alive == 0) finish_block(block);
  finish_cluster_barrier(*block.cluster);
}

void Launch::finish_block(Block& block) {
  const auto refuse = [&](const auto&... parts) {
    fail_at(nullptr, nullptr, text("block ", text_of(block.index), " leaves the kernel", parts...));
  };
  const ViewRef known = block.at_exit.join();
  for (const RemoteAccess& access : block.remote) {
    if (known->known(access.id) >= access.tick) continue;
    refuse(
        ", and nothing orders this after ", name_of(access.id, access.tick), " reaches into its shared memory (",
        sites.at(access.site).text(), ")");
  }
  std::erase_if(deliveries_, [&](Delivery& delivery) {
    if (delivery.target != &block) return false;
    if (delivery.what == Delivery::What::kBox) {
      refuse(" while ", delivery.site->text(), " is still under way to its shared memory");
    }
    land(delivery);  // an arrival, which is known to have happened, as has just been checked
    return true;
  });
  for (const auto& barrier : block.mbarriers) {
    if (barrier->bytes == 0) continue;
    refuse(
        ", and its mbarrier at ", hex(barrier->address), " (", sites.at(barrier->init_site).where(), ") has ",
        barrier->bytes, " bytes that were expected and never came (less than 0: came and were never expected)");
  }
  for (int id = 0; id < 16; ++id) {
    const NamedBarrier& barrier = block.barriers[id];
    if (barrier.arrived == 0) continue;
    refuse(", and only ", barrier.arrived, " of ", barrier.expected, " threads have come to its barrier ", id);
  }
  for (const Warpgroup& group : block.warpgroups) {
    if (!group.accumulators.empty()) refuse(" with products (wgmma) that its warpgroup never waited for");
  }
  block.exited = true;
  --block.cluster->alive;
}

// ------------------------------------------------------------------------------------------------- whose turn it is

void Launch::go_to(Thread* thread, void** from) {
  self = thread;
  current_ = thread->warp;
  thread_index = {static_cast<unsigned>(thread->index), 0, 0};
  block_index = thread->block->index;
  ++statistics.switches;
  fastflow_switch_stack(from, thread->stack_pointer);
}

Warp* Launch::ready_from(int slot, int step) {
  const int count = static_cast<int>(warps_.size());
  const Warp* skipped = schedule.order == Order::kLast ? warps_[schedule.seed % count] : nullptr;
  for (int i = 0; i < count; ++i) {
    slot = (slot + step + count) % count;
    if (ready_[slot / 64] >> slot % 64 & 1 && warps_[slot] != skipped) return warps_[slot];
  }
  return skipped && skipped->runnable ? warps_[skipped->slot] : nullptr;
}

Warp* Launch::next_warp() {
  const int count = static_cast<int>(warps_.size());
  const bool stay = current_ && current_->runnable && !(avoided_ && avoided_->warp == current_);
  switch (schedule.order) {
    case Order::kForward:
      return stay ? current_ : ready_from(current_ ? current_->slot : -1, 1);
    case Order::kReverse:
      return stay ? current_ : ready_from(current_ ? current_->slot : 0, -1);
    case Order::kFirst: {
      Warp* first = warps_[schedule.seed % count];
      if (first && first->runnable && !(avoided_ && avoided_->warp == first)) return first;
      return stay ? current_ : ready_from(current_ ? current_->slot : -1, 1);
    }
    case Order::kLast:
      if (stay && current_->slot != static_cast<int>(schedule.seed % count)) return current_;
      return ready_from(current_ ? current_->slot : -1, 1);
    case Order::kRandom:
      if (stay && !chance(4)) return current_;
      return ready_from(static_cast<int>(random_() % count), 1);
  }
  return nullptr;
}

Thread* Launch::lane_of(Warp& warp) {
  uint32_t lanes = warp.runnable;
  if (avoided_ && avoided_->warp == &warp && (lanes & (lanes - 1))) lanes &= ~(1u << avoided_->lane);
  if (schedule.order == Order::kReverse || (schedule.order != Order::kForward && schedule.seed % 2 == 1)) {
    return &warp.lanes[31 - __builtin_clz(lanes)];
  }
  if (schedule.order == Order::kRandom && chance(2)) {
    const uint32_t some = lanes & ((random_() >> 4) << 16 | (random_() >> 4 & 0xffff));
    if (some) lanes = some;
  }
  return &warp.lanes[__builtin_ctz(lanes)];
}

Thread* Launch::next() {
  Warp* warp = next_warp();
  return warp ? lane_of(*warp) : nullptr;
}

void Launch::switch_away() {
  Thread* me = self;
  Thread* thread;
  while ((thread = next()) == nullptr && deliver_one()) {
  }
  avoided_ = nullptr;
  if (thread == me && !me->done) return;
  if (thread) {
    go_to(thread, &me->stack_pointer);
  } else {
    fastflow_switch_stack(&me->stack_pointer, main_stack_);
  }
}

void Launch::block(Waits waits, const Site& site, const void* what, uint32_t value) {
  Thread& me = *self;
  me.waits = waits;
  me.waits_at = &site;
  me.waits_for = what;
  me.waits_value = value;
  Warp& warp = *me.warp;
  warp.runnable &= ~(1u << me.lane);
  if (!warp.runnable) ready_[warp.slot / 64] &= ~(uint64_t(1) << warp.slot % 64);
  switch_away();
}

void Launch::let_others_run() {
  avoided_ = self;
  switch_away();
}

void Launch::wake(Warp& warp, uint32_t lanes) {
  for (uint32_t left = lanes; left; left &= left - 1) warp.lanes[__builtin_ctz(left)].waits = Waits::kNothing;
  warp.runnable |= lanes;
  ready_[warp.slot / 64] |= uint64_t(1) << warp.slot % 64;
}

void Launch::wake(Thread& thread) { wake(*thread.warp, 1u << thread.lane); }

void Launch::maybe_preempt() {
  if (schedule.timing == Timing::kRandom && !deliveries_.empty() && chance(8)) deliver_one();
  switch (schedule.order) {
    case Order::kForward:
    case Order::kReverse:
      return;
    case Order::kFirst: {
      const Warp* first = warps_[schedule.seed % warps_.size()];
      if (first && first->runnable && self->warp != first) switch_away();
      return;
    }
    case Order::kLast:
      if (self->warp->slot == static_cast<int>(schedule.seed % warps_.size())) switch_away();
      return;
    case Order::kRandom:
      if (chance(16)) switch_away();
      return;
  }
}

bool last_of_warp(const Site& site, void* argument) {
  Warp& warp = *self->warp;
  if (warp.all != kAllLanes) fail(site, "needs a whole warp; the block's last one has fewer threads");
  if (warp.alive != kAllLanes) fail(site, "needs all lanes of the warp, and some have left the kernel");
  if (warp.gathered && warp.site != &site) {
    fail(site, "the warp's lanes have gone different ways: others are in ", warp.site->text());
  }
  warp.site = &site;
  warp.arguments[self->lane] = argument;
  warp.gathered |= 1u << self->lane;
  if (warp.gathered != kAllLanes) {
    launch->block(Waits::kWarp, site);
    return false;
  }
  warp.gathered = 0;
  return true;
}

void release_warp() { launch->wake(*self->warp, kAllLanes); }

void block_warp(Waits waits, const Site& site, const void* what, uint32_t value) {
  for (Thread& lane : self->warp->lanes) {
    lane.waits = waits;
    lane.waits_at = &site;
    lane.waits_for = what;
    lane.waits_value = value;
  }
  self->warp->runnable = 1u << self->lane;  // the others are waiting already
  launch->block(waits, site, what, value);
}

void Launch::run() {
  for (;;) {
    retire_clusters();
    start_clusters();
    if (Thread* thread = next()) {
      go_to(thread, &main_stack_);
      self = nullptr;
      if (error_) std::rethrow_exception(error_);
    } else if (!deliver_one()) {
      if (std::none_of(clusters_.begin(), clusters_.end(), [](const auto& c) { return c != nullptr; })) return;
      report_deadlock();
    }
  }
}

// ---------------------------------------------------------------------------------------- things that happen by
// themselves

bool Launch::late_now() {
  return schedule.timing == Timing::kLate || (schedule.timing == Timing::kRandom && chance(2));
}

void Launch::post(Delivery delivery) {
  if (late_now()) {
    deliveries_.push_back(std::move(delivery));
  } else {
    land(delivery);
  }
}

bool Launch::deliver_one() {
  if (deliveries_.empty()) return false;
  size_t which = 0;
  if (schedule.timing == Timing::kRandom) {
    which = random_() % deliveries_.size();
  } else if (schedule.seed % 2 == 1) {
    which = deliveries_.size() - 1;  // nothing promises that copies arrive in order
  }
  Delivery delivery = std::move(deliveries_[which]);
  deliveries_.erase(deliveries_.begin() + which);
  land(delivery);
  return true;
}

Shadow* Launch::find_memory(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uint64_t>(address);
  const auto after = std::upper_bound(
      memory_.begin(), memory_.end(), at, [](uint64_t value, const auto& shadow) { return value < shadow->base(); });
  if (after == memory_.begin()) return nullptr;
  Shadow* shadow = std::prev(after)->get();
  return shadow->contains(at, bytes) ? shadow : nullptr;
}

void Launch::wake_flag(const void* address) {
  std::erase_if(flag_waiters, [&](Thread* thread) {
    if (thread->waits_for != address) return false;
    wake(*thread);
    return true;
  });
}

// ------------------------------------------------------------------------------------------------------ what is said

std::string Launch::name_of(Id id, Tick tick) const {
  const int slot = id / ids_per_block_, in_block = id % ids_per_block_, mbarrier = in_block - shape_.threads;
  const Cluster* cluster = clusters_[slot / shape_.cluster].get();
  const Block* block = cluster ? cluster->blocks[slot % shape_.cluster].get() : nullptr;
  std::string who = text("thread ", in_block);
  if (mbarrier >= kMostMbarriers) {
    who = text("the products of warpgroup ", (mbarrier - kMostMbarriers) / 4);
  } else if (mbarrier >= 0) {
    who = "the copy engine";
  } else if (block) {
    const Thread& thread = block->warps[in_block / 32]->lanes[in_block % 32];
    if (tick >= thread.birth) return describe(thread);
    block = nullptr;
  }
  return who + (block ? " of block " + text_of(block->index) : " of a block that has left");
}

void Launch::report_deadlock() {
  // what -> who
  std::vector<std::pair<std::string, std::string>> lines;
  const auto add = [&](const std::string& what, const std::string& who) {
    for (auto& line : lines) {
      if (line.first == what) {
        line.second += ", " + who;
        return;
      }
    }
    lines.emplace_back(what, who);
  };
  for (const auto& cluster : clusters_) {
    if (!cluster) continue;
    for (const auto& block : cluster->blocks) {
      for (const auto& warp : block->warps) {
        std::map<std::string, std::vector<int>> lanes;
        for (const Thread& thread : warp->lanes) {
          if (!thread.block || thread.done) continue;
          std::string what = thread.waits_at->text();
          switch (thread.waits) {
            case Waits::kWarp:
              what += ": for the other lanes of the warp";
              break;
            case Waits::kWarpgroup:
              what += ": for the other warps of the warpgroup";
              break;
            case Waits::kBarrier: {
              const auto& barrier = *static_cast<const NamedBarrier*>(thread.waits_for);
              what += text(
                  ": barrier ", &barrier - block->barriers, " has ", barrier.arrived, " of ", barrier.expected,
                  " threads");
              break;
            }
            case Waits::kMbarrier: {
              const auto& barrier = *static_cast<const Mbarrier*>(thread.waits_for);
              what += text(
                  ": parity ", thread.waits_value, " of the mbarrier at ", hex(barrier.address), " (", barrier.phase,
                  " phases have ended, ", barrier.pending, " of ", barrier.count, " arrivals and ", barrier.bytes,
                  " bytes are missing)");
              break;
            }
            case Waits::kFlag: {
              const auto* flag = static_cast<const uint32_t*>(thread.waits_for);
              what += text(": for ", thread.waits_value, "; the flag is ", *flag);
              break;
            }
            case Waits::kCluster:
              what += ": for the other warps of the cluster";
              break;
            case Waits::kRegisters:
              what += text(": ", block->free_registers, " registers are free");
              break;
            case Waits::kNothing:
              break;
          }
          lanes[what].push_back(thread.lane);
        }
        for (const auto& [what, list] : lanes) {
          std::string who = text("block ", text_of(block->index), " warp ", warp->index);
          if (list.size() < 32) {
            who += list.size() == 1 ? " lane" : " lanes";
            for (size_t i = 0; i < list.size();) {
              size_t j = i;
              while (j + 1 < list.size() && list[j + 1] == list[j] + 1) ++j;
              who += text(" ", list[i], j > i ? text("-", list[j]) : "");
              i = j + 1;
            }
          }
          add(what, who);
        }
      }
    }
  }
  std::string all;
  for (const auto& [what, who] : lines) all += text("\n  ", what, "\n    ", who);
  fail_at(nullptr, nullptr, "deadlock: everyone who is left waits" + all);
}

}  // namespace fastflow::emulator
