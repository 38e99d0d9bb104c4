// Mbarriers, the copy engine, and what reaches into other blocks of a cluster.
#include <algorithm>
#include <cstring>

#include "model.h"

namespace fastflow::emulator {
namespace {

Block& block_of_rank(uint32_t rank, const Site& site) {
  Cluster& cluster = *self->block->cluster;
  if (rank >= cluster.blocks.size()) {
    fail(site, "there is no block ", rank, " in a cluster of ", cluster.blocks.size());
  }
  return *cluster.blocks[rank];
}

// Before the first access to another block's shared memory that block must be known to have started, and it must not
// leave before the last one.
void reach(Block& target, const Site& site) {
  if (&target == self->block) return;
  if (target.exited) fail(site, "block ", target.rank, " of the cluster has left the kernel");
  bool started = false;
  for (const auto& warp : target.warps) {
    for (const Thread& thread : warp->lanes) started |= thread.block && self->view->known(thread.id) >= thread.birth;
  }
  if (!started) {
    fail(site, "nothing says that block ", target.rank, " of the cluster has started; it takes a cluster barrier");
  }
  for (RemoteAccess& access : target.remote) {
    if (access.id == self->id) {
      access = {self->id, self->tick, site.index};
      return;
    }
  }
  target.remote.push_back({self->id, self->tick, site.index});
}

// `from_outside`: by the copy engine, or by another block.
Mbarrier& usable_mbarrier(Block& block, uint32_t address, bool from_outside, const Site& site) {
  check_shared(block, address, 8, 8, site);
  for (const auto& barrier : block.mbarriers) {
    if (barrier->address != address) continue;
    const bool mine = barrier->init_id == self->id;
    if (!mine && self->view->known(barrier->init_id) < barrier->init_tick) {
      fail(
          site, "nothing orders this after the mbarrier's initialisation (", sites.at(barrier->init_site).where(), ")");
    }
    if (from_outside &&
        (barrier->fence_tick == 0 || (!mine && self->view->known(barrier->init_id) < barrier->fence_tick))) {
      fail(
          site, "no fence_mbarrier_init makes the mbarrier's initialisation (", sites.at(barrier->init_site).where(),
          ") visible to the copy engine and to other blocks");
    }
    return *barrier;
  }
  fail(site, "there is no initialised mbarrier at ", hex(address), " of block ", block.rank, " of the cluster");
}

void end_phase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  const auto publish = [&](ViewRef& visible, Gather& told) {
    visible = views->with(views->join(visible, told.join()), barrier.id, barrier.start + barrier.phase);
  };
  publish(barrier.visible, barrier.told);
  publish(barrier.visible_block, barrier.told_block);
  ++launch->statistics.barriers;
  for (const auto& warp : barrier.block->warps) {
    for (Thread& thread : warp->lanes) {
      if (thread.waits == Waits::kMbarrier && thread.waits_for == &barrier) launch->wake(thread);
    }
  }
}

// By a thread of the barrier's block.
void release_to(Mbarrier& barrier) {
  barrier.told.add(self->view, self->stamp());
  barrier.told_block.add(self->view, self->stamp());
  ++self->tick;
}

void count_arrival(Mbarrier& barrier, const Thread* thread, const Site& site) {
  if (barrier.pending == 0) {
    fail_at(
        thread, &site,
        text(
            "arrives too often at the mbarrier at ", hex(barrier.address), ": all ", barrier.count,
            " arrivals of the phase are there (", barrier.bytes, " bytes are missing)"));
  }
  --barrier.pending;
}

}  // namespace

void mbarrier_init(uint32_t address, uint32_t count, const Location& at) {
  const Site& site = enter(Kind::kMbarrierInit, at);
  if (site.skipped) return;
  address += static_cast<uint32_t>(site.shift[0]);
  count += static_cast<uint32_t>(site.shift[1]);
  Block& block = *self->block;
  check_shared(block, address, 8, 8, site);
  if (count == 0 || count >= 1u << 20) fail(site, "the count must be from 1 to 2^20 - 1; got ", count);
  for (const auto& barrier : block.mbarriers) {
    if (barrier->address == address) fail(site, "the mbarrier at ", hex(address), " is initialised twice");
  }
  if (block.mbarriers.size() >= kMostMbarriers) fail(site, "the model has room for ", kMostMbarriers, " mbarriers");
  block.shadow->write(address, 8, self->actor(site));
  block.shadow->set_barrier_word(address);
  auto barrier = std::make_unique<Mbarrier>();
  barrier->block = &block;
  barrier->address = address;
  barrier->count = barrier->pending = count;
  barrier->id = launch->mbarrier_id(block);
  barrier->start = launch->last_tick(barrier->id);
  barrier->init_id = self->id;
  barrier->init_tick = self->tick++;
  barrier->init_site = site.index;
  block.mbarriers.push_back(std::move(barrier));
}

void fence_mbarrier_init(const Location& at) {
  const Site& site = enter(Kind::kFenceMbarrierInit, at);
  if (site.skipped) return;
  for (const auto& barrier : self->block->mbarriers) {
    if (barrier->init_id == self->id && barrier->fence_tick == 0) barrier->fence_tick = self->tick;
  }
  ++self->tick;
}

void mbarrier_arrive(uint32_t address, const Location& at) {
  const Site& site = enter(Kind::kMbarrierArrive, at);
  if (site.skipped) return;
  Mbarrier& barrier = usable_mbarrier(*self->block, address + static_cast<uint32_t>(site.shift[0]), false, site);
  count_arrival(barrier, self, site);
  release_to(barrier);
  end_phase(barrier);
}

void mbarrier_arrive_expect(uint32_t address, uint32_t bytes, const Location& at) {
  const Site& site = enter(Kind::kMbarrierArriveExpect, at);
  if (site.skipped) return;
  Mbarrier& barrier = usable_mbarrier(*self->block, address + static_cast<uint32_t>(site.shift[0]), false, site);
  count_arrival(barrier, self, site);
  barrier.bytes += bytes + site.shift[1];
  if (barrier.bytes >= 1 << 20) fail(site, "an mbarrier can expect less than 2^20 bytes; got ", barrier.bytes);
  release_to(barrier);
  end_phase(barrier);
}

namespace {

void arrive_cluster(uint32_t address, uint32_t rank, bool relaxed, const Site& site) {
  address += static_cast<uint32_t>(site.shift[0]);
  rank += static_cast<uint32_t>(site.shift[1]);
  Block& target = block_of_rank(rank, site);
  reach(target, site);
  Mbarrier& barrier = usable_mbarrier(target, address, &target != self->block, site);
  Delivery delivery = {};
  delivery.what = Delivery::What::kArrival;
  delivery.target = &target;
  delivery.barrier = &barrier;
  delivery.thread = self;
  delivery.site = &site;
  // Waits at the scope of the block see what its own threads released, and of others no more than that reads are done.
  const auto finished = [&] {
    const Stamp stamp = {self->id, 0, 0, 0};
    Gather told;
    told.add(views->finished_only(self->view), stamp);
    ViewRef view = told.join();
    view->ticks[view->size + self->id] = self->tick;
    return view;
  };
  delivery.told_block = relaxed || &target != self->block ? finished() : ViewRef();
  if (relaxed) {
    delivery.told = delivery.told_block;
  } else {
    Gather told;
    told.add(self->view, self->stamp());
    delivery.told = told.join();
    if (!delivery.told_block) delivery.told_block = delivery.told;
  }
  ++self->tick;
  if (&target == self->block) {
    land(delivery);
  } else {
    launch->post(std::move(delivery));
  }
}

void wait_for_phase(uint32_t address, uint32_t parity, bool cluster, const Site& site) {
  parity += static_cast<uint32_t>(site.shift[1]);
  if (site.shift[1]) parity &= 1;
  if (parity > 1) fail(site, "a parity is 0 or 1; got ", parity);
  Mbarrier& barrier = usable_mbarrier(*self->block, address + static_cast<uint32_t>(site.shift[0]), false, site);
  // Looks again when its turn comes: who is so late that yet another phase has ended waits on, as on the hardware.
  while ((barrier.phase & 1) == parity) launch->block(Waits::kMbarrier, site, &barrier, parity);
  self->acquire(cluster ? barrier.visible : barrier.visible_block);
}

}  // namespace

void mbarrier_arrive_cluster(uint32_t address, uint32_t rank, const Location& at) {
  const Site& site = enter(Kind::kMbarrierArriveCluster, at);
  if (!site.skipped) arrive_cluster(address, rank, false, site);
}

void mbarrier_arrive_relaxed(uint32_t address, uint32_t rank, const Location& at) {
  const Site& site = enter(Kind::kMbarrierArriveRelaxed, at);
  if (!site.skipped) arrive_cluster(address, rank, true, site);
}

void mbarrier_wait(uint32_t address, uint32_t parity, const Location& at) {
  const Site& site = enter(Kind::kMbarrierWait, at);
  if (!site.skipped) wait_for_phase(address, parity, false, site);
}

void mbarrier_wait_cluster(uint32_t address, uint32_t parity, const Location& at) {
  const Site& site = enter(Kind::kMbarrierWaitCluster, at);
  if (!site.skipped) wait_for_phase(address, parity, true, site);
}

// ----------------------------------------------------------------------------------------------------- the copy engine

TensorMap make_tensor_map(
    const void* base, int element, const uint64_t (&dims)[4], const uint64_t (&strides)[3], const uint32_t (&box)[4]) {
  const auto refuse = [](const std::string& why) { throw EmulationError("make_tensor_map: " + why); };
  if (reinterpret_cast<uint64_t>(base) % 16 != 0) refuse("the base must be on a boundary of 16 bytes");
  TensorMap map = {static_cast<const char*>(base), {}, {}, {}, element};
  map.strides[0] = element;
  for (int i = 0; i < 4; ++i) {
    if (dims[i] == 0 || dims[i] > uint64_t(1) << 32) refuse(text("size ", i, " must be from 1 to 2^32; got ", dims[i]));
    if (box[i] == 0 || box[i] > 256) refuse(text("box ", i, " must be from 1 to 256; got ", box[i]));
    if (i > 0) {
      const uint64_t stride = strides[i - 1];
      if (stride % 16 != 0 || stride >= uint64_t(1) << 40) {
        refuse(text("stride ", i, " must be a multiple of 16 below 2^40; got ", stride));
      }
      map.strides[i] = static_cast<int64_t>(stride);
    }
    map.dims[i] = static_cast<int64_t>(dims[i]);
    map.box[i] = box[i];
  }
  if (box[0] * element != 128) refuse(text("a row of the box must have 128 bytes; got ", box[0] * element));
  return map;
}

namespace {

// Calls f(address or null outside of the tensor, offset in the box) for each row, in pieces of 16 bytes.
template <class F>
void for_each_piece(const TensorMap& map, const int64_t (&corner)[4], const F& f) {
  uint32_t offset = 0;
  const int per_piece = 16 / map.element;
  const int64_t rows = map.box[1] * map.box[2] * map.box[3];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at[4] = {
        0, corner[1] + row % map.box[1], corner[2] + row / map.box[1] % map.box[2],
        corner[3] + row / map.box[1] / map.box[2]};
    bool inside = true;
    const char* begin = map.base;
    for (int i = 1; i < 4; ++i) {
      inside = inside && at[i] >= 0 && at[i] < map.dims[i];
      begin += at[i] * map.strides[i];
    }
    for (int64_t i = 0; i < map.box[0]; i += per_piece, offset += 16) {
      const int64_t column = corner[0] + i;
      const int64_t first = std::clamp<int64_t>(-column, 0, per_piece);
      const int64_t last = std::clamp<int64_t>(map.dims[0] - column, 0, per_piece);
      const bool any = inside && first < last;
      f(any ? begin + (column + first) * map.element : nullptr, any ? first * map.element : 0,
        any ? (last - first) * map.element : 0, offset);
    }
  }
}

int64_t bytes_of_box(const TensorMap& map) { return map.box[0] * map.box[1] * map.box[2] * map.box[3] * map.element; }

uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

}  // namespace

void tma_load(
    uint32_t dst, const TensorMap& map, uint32_t address, const int (&corner)[4], uint32_t blocks, bool multicast,
    const Location& at) {
  const Site& site = enter(Kind::kTmaLoad, at);
  if (site.skipped) return;
  Delivery delivery = {};
  delivery.what = Delivery::What::kBox;
  delivery.map = map;
  for (int i = 0; i < 4; ++i) delivery.corner[i] = corner[i] + site.shift[i + 1];
  delivery.dst = dst + static_cast<uint32_t>(site.shift[0]);
  delivery.thread = self;
  delivery.site = &site;
  const auto bytes = static_cast<uint32_t>(bytes_of_box(map));
  Cluster& cluster = *self->block->cluster;
  if (multicast && (blocks == 0 || blocks >> cluster.blocks.size() != 0)) {
    fail(site, "the mask ", hex(blocks), " does not fit a cluster of ", cluster.blocks.size());
  }
  if (!multicast) blocks = 1u << self->block->rank;

  std::vector<Delivery> parts;
  for (size_t rank = 0; rank < cluster.blocks.size(); ++rank) {
    if (!(blocks >> rank & 1)) continue;
    Block& target = *cluster.blocks[rank];
    reach(target, site);
    check_shared(target, delivery.dst, bytes, 1024, site);
    Mbarrier& barrier = usable_mbarrier(target, address, true, site);
    Actor actor = self->actor(site);
    actor.async = actor.in_flight = true;
    actor.mark = barrier.id;
    actor.tick = barrier.start + barrier.phase + 1;
    if (parts.empty()) {
      for_each_piece(map, delivery.corner, [&](const char* from, int64_t, int64_t count, uint32_t) {
        if (count == 0) return;
        if (Shadow* shadow = check_global(from, count, 1, site)) {
          shadow->read(reinterpret_cast<uint64_t>(from), count, &actor, 1);
        }
      });
    }
    target.shadow->write(delivery.dst, bytes, actor);
    parts.push_back(delivery);
    parts.back().target = &target;
    parts.back().barrier = &barrier;
  }
  launch->statistics.boxes += bytes * parts.size();
  for (Delivery& part : parts) launch->post(std::move(part));
}

void land(Delivery& delivery) {
  Mbarrier& barrier = *delivery.barrier;
  if (delivery.what == Delivery::What::kArrival) {
    count_arrival(barrier, delivery.thread, *delivery.site);
    barrier.told.add(delivery.told);
    barrier.told_block.add(delivery.told_block);
    end_phase(barrier);
    return;
  }
  Block& block = *delivery.target;
  for_each_piece(delivery.map, delivery.corner, [&](const char* from, int64_t first, int64_t count, uint32_t offset) {
    char* to = block.bytes(swizzled(delivery.dst + offset));
    std::memset(to, 0, 16);
    if (count) std::memcpy(to + first, from, count);
  });
  const int64_t bytes = bytes_of_box(delivery.map);
  block.shadow->land(delivery.dst, bytes, barrier.id, barrier.start + barrier.phase + 1);
  barrier.bytes -= bytes;
  end_phase(barrier);
}

void fence_proxy_async(const Location& at) {
  const Site& site = enter(Kind::kFenceProxyAsync, at);
  if (site.skipped) return;
  self->fenced = self->fenced_shared = self->tick++;
  self->at_fence = self->at_fence_shared = self->view;
}

void fence_proxy_async_shared(const Location& at) {
  const Site& site = enter(Kind::kFenceProxyAsync, at);
  if (site.skipped) return;
  self->fenced_shared = self->tick++;
  self->at_fence_shared = self->view;
}

void* store_shared_cluster(uint32_t address, uint32_t rank, size_t bytes, const Location& at) {
  Site& site = enter(Kind::kStoreSharedCluster, at);
  site.bytes = static_cast<uint32_t>(bytes);
  address += static_cast<uint32_t>(site.shift[0]);
  rank += static_cast<uint32_t>(site.shift[1]);
  Block& target = block_of_rank(rank, site);
  reach(target, site);
  check_shared(target, address, bytes, bytes, site);
  target.shadow->write(address, bytes, self->actor(site));
  launch->statistics.shared_written += bytes;
  return target.bytes(address);
}

}  // namespace fastflow::emulator
