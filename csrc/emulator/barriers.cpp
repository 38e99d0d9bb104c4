// Barriers of warps, blocks and clusters, and exchanges between lanes.
#include <algorithm>

#include "model.h"

namespace fastflow::emulator {
namespace {

// What all lanes of the warp know, told to each of them: to others through `told`.
void release_lanes(Warp& warp, Gather& told) {
  for (Thread& lane : warp.lanes) lane.release(told);
}

void set_views(Warp& warp, const ViewRef& view) {
  for (Thread& lane : warp.lanes) lane.view = view;  // contains what each knew, having gathered it
}

struct BarrierCall {
  int id, threads;
};

void named_barrier(BarrierCall call, bool waits, const Site& site) {
  if (!last_of_warp(site, &call)) return;
  Warp& warp = *self->warp;
  Block& block = *warp.block;
  for (const void* other : warp.arguments) {
    const auto& theirs = *static_cast<const BarrierCall*>(other);
    if (theirs.id != call.id || theirs.threads != call.threads) fail(site, "lanes name different barriers or counts");
  }
  NamedBarrier& barrier = block.barriers[call.id];
  if (barrier.arrived == 0) barrier.expected = call.threads;
  if (barrier.expected != call.threads) {
    fail(
        site, "barrier ", call.id, " is called for ", call.threads, " threads; others called it for ",
        barrier.expected);
  }
  if (std::find(barrier.came.begin(), barrier.came.end(), &warp) != barrier.came.end()) {
    fail(site, "the warp comes to barrier ", call.id, " again before the others have");
  }
  barrier.arrived += 32;
  barrier.came.push_back(&warp);
  release_lanes(warp, barrier.told);
  if (barrier.arrived < barrier.expected) {
    if (waits) {
      barrier.waiting.push_back(&warp);
      block_warp(Waits::kBarrier, site, &barrier);
    } else {
      release_warp();
    }
    return;
  }
  const ViewRef told = barrier.told.join();
  for (Warp* other : barrier.waiting) {
    set_views(*other, told);
    launch->wake(*other, kAllLanes);
  }
  if (waits) set_views(warp, told);
  release_warp();
  barrier = NamedBarrier();
  ++launch->statistics.barriers;
}

struct ShuffleCall {
  uint64_t value, result;
  int operand;
};

uint64_t exchange(uint64_t value, int operand, bool by_mask, const Site& site) {
  ShuffleCall call = {value, 0, operand + static_cast<int>(site.shift[0])};
  if (last_of_warp(site, &call)) {
    const auto& arguments = self->warp->arguments;
    for (int lane = 0; lane < 32; ++lane) {
      auto& mine = *static_cast<ShuffleCall*>(arguments[lane]);
      const int from = by_mask ? lane ^ mine.operand : mine.operand & 31;
      if (from < 0 || from > 31) fail(site, "lane ", lane, " asks for lane ", from);
      mine.result = static_cast<const ShuffleCall*>(arguments[from])->value;
    }
    release_warp();
  }
  return call.result;
}

}  // namespace

void sync_threads(const Location& at) {
  const Site& site = enter(Kind::kSyncThreads, at);
  if (!site.skipped) named_barrier({0, self->block->threads}, true, site);
}

void check_named(int id, int threads, const Site& site) {
  if (id < 1 || id > 15) fail(site, "there are barriers 1 to 15; got ", id);
  if (threads <= 0 || threads % 32 != 0 || threads > self->block->threads) {
    fail(site, "the count must be a multiple of 32 of the block's ", self->block->threads, " threads; got ", threads);
  }
}

void named_barrier_sync(int id, int threads, const Location& at) {
  const Site& site = enter(Kind::kNamedBarrierSync, at);
  check_named(id, threads, site);
  if (!site.skipped) named_barrier({id, threads}, true, site);
}

void named_barrier_arrive(int id, int threads, const Location& at) {
  const Site& site = enter(Kind::kNamedBarrierArrive, at);
  check_named(id, threads, site);
  if (!site.skipped) named_barrier({id, threads}, false, site);
}

void sync_warp(const Location& at) {
  const Site& site = enter(Kind::kSyncWarp, at);
  if (site.skipped || !last_of_warp(site)) return;
  Gather told;
  release_lanes(*self->warp, told);
  set_views(*self->warp, told.join());
  release_warp();
}

uint64_t shuffle(uint64_t value, int lane, const Location& at) {
  return exchange(value, lane, false, enter(Kind::kShuffle, at));
}

uint64_t shuffle_xor(uint64_t value, int mask, const Location& at) {
  return exchange(value, mask, true, enter(Kind::kShuffle, at));
}

// ---------------------------------------------------------------------------------------------------------- clusters

uint32_t cluster_rank() { return static_cast<uint32_t>(self->block->rank); }
uint32_t cluster_size() { return static_cast<uint32_t>(self->block->cluster->blocks.size()); }

// Ends the phase once everybody has come who has not left.
void finish_cluster_barrier(Cluster& cluster) {
  bool somebody = false;
  for (const auto& block : cluster.blocks) {
    for (const auto& warp : block->warps) {
      const bool came = warp->cluster_arrived && warp->cluster_arrivals == cluster.phase;
      if (warp->alive && !came) return;
      somebody |= came;
    }
  }
  if (!somebody) return;
  ++cluster.phase;
  cluster.visible = views->join(cluster.visible, cluster.told.join());
  ++launch->statistics.barriers;
  for (const auto& block : cluster.blocks) {
    for (const auto& warp : block->warps) {
      if (warp->alive && warp->lanes[0].waits == Waits::kCluster) {
        for (Thread& lane : warp->lanes) lane.acquire(cluster.visible);
        warp->cluster_arrived = false;
        launch->wake(*warp, kAllLanes);
      }
    }
  }
}

namespace {

void come(Warp& warp, const Site& site) {
  if (warp.cluster_arrived) fail(site, "the warp comes to the cluster's barrier again without a wait between");
  warp.cluster_arrived = true;
  Cluster& cluster = *warp.block->cluster;
  warp.cluster_arrivals = cluster.phase;
  release_lanes(warp, cluster.told);
  finish_cluster_barrier(cluster);
}

void await(Warp& warp, const Site& site) {
  if (!warp.cluster_arrived) fail(site, "the warp waits for the cluster's barrier without having come to it");
  Cluster& cluster = *warp.block->cluster;
  if (cluster.phase == warp.cluster_arrivals) {
    block_warp(Waits::kCluster, site);
    return;
  }
  for (Thread& lane : warp.lanes) lane.acquire(cluster.visible);
  warp.cluster_arrived = false;
  release_warp();
}

}  // namespace

void cluster_arrive(const Location& at) {
  const Site& site = enter(Kind::kClusterArrive, at);
  if (site.skipped || !last_of_warp(site)) return;
  come(*self->warp, site);
  release_warp();
}

void cluster_wait(const Location& at) {
  const Site& site = enter(Kind::kClusterWait, at);
  if (site.skipped || !last_of_warp(site)) return;
  await(*self->warp, site);
}

void cluster_sync(const Location& at) {
  const Site& site = enter(Kind::kClusterSync, at);
  if (site.skipped || !last_of_warp(site)) return;
  come(*self->warp, site);
  await(*self->warp, site);
}

// --------------------------------------------------------------------------------------------------------- registers

void registers_release(int registers, const Location& at) {
  const Site& site = enter(Kind::kRegistersRelease, at);
  if (!last_of_warp(site)) return;
  Warp& warp = *self->warp;
  if (registers > warp.registers) fail(site, "the warp has ", warp.registers, " registers per thread already");
  warp.block->free_registers += 32 * (warp.registers - registers);
  warp.registers = registers;
  for (const auto& other : warp.block->warps) {
    if (other->alive && other->lanes[0].waits == Waits::kRegisters) launch->wake(*other, kAllLanes);
  }
  release_warp();
}

void registers_acquire(int registers, const Location& at) {
  const Site& site = enter(Kind::kRegistersAcquire, at);
  for (;;) {
    if (!last_of_warp(site)) {
      if (self->warp->registers == registers) return;
      continue;  // woken to look again
    }
    Warp& warp = *self->warp;
    const int more = 32 * (registers - warp.registers);
    if (more < 0) fail(site, "the warp has ", warp.registers, " registers per thread already");
    if (more <= warp.block->free_registers) {
      warp.block->free_registers -= more;
      warp.registers = registers;
      release_warp();
      return;
    }
    block_warp(Waits::kRegisters, site);
  }
}

}  // namespace fastflow::emulator
