#include "shadow.h"

#include <algorithm>

namespace fastflow::emulator {

const uint8_t* parts_of = nullptr;
const uint16_t* source_of = nullptr;
int ids_per_block = 1;

Shadow::Shadow(uint64_t base, size_t bytes, bool shared) : base_(base), bytes_(bytes), shared_(shared), more_(1) {
  const uint64_t first = base / kChunk, last = (base + bytes + kChunk - 1) / kChunk;
  const Mark nobody = {0, kNobody, 0}, writer = {0, shared ? kNobody : kHost, 0};
  chunks_.assign(last - first, Chunk{{writer, nobody, 0, 0}, 0});
}

void Shadow::fail(Fault fault, uint64_t address, const Mark& other, const Actor& actor) {
  report({fault, address, other.id, other.tick, other.site}, actor, shared_);
}

// Calls f(cell, address) for all cells of the range. A chunk whose cells all have the same history has one cell.
template <class F>
void Shadow::each(uint64_t address, size_t bytes, bool overwrites, const F& f) {
  const uint64_t end = address + bytes, first = base_ / kChunk;
  while (address < end) {
    const uint64_t start = address / kChunk * kChunk, stop = std::min(end, start + kChunk);
    Chunk& chunk = chunks_[address / kChunk - first];
    const bool full = address == start && stop == start + kChunk;
    if (!full && !chunk.split) {
      if (free_parts_.empty()) {
        parts_.emplace_back();
        free_parts_.push_back(static_cast<uint32_t>(parts_.size()));
      }
      chunk.split = free_parts_.back();
      free_parts_.pop_back();
      const std::vector<Mark> more = more_[chunk.whole.more];  // a copy, since more_ grows
      for (Cell& part : parts_[chunk.split - 1]) {
        part = chunk.whole;
        part.more = 0;
        if (!more.empty()) list_of(part) = more;
      }
      forget_reads(chunk.whole);
    }
    if (chunk.split) {
      const uint64_t from = (address - start) / kGranule, to = (stop - start + kGranule - 1) / kGranule;
      for (uint64_t i = from; i < to; ++i) f(parts_[chunk.split - 1][i], start + i * kGranule);
      if (full && overwrites) {  // one history again
        chunk.whole = parts_[chunk.split - 1][0];
        free_parts_.push_back(chunk.split);
        chunk.split = 0;
      }
    } else {
      f(chunk.whole, start);
    }
    address = stop;
  }
}

void Shadow::check_read(const Cell& cell, uint64_t address, const Actor& actor) {
  const Mark& write = cell.write;
  if (cell.flags & kFlagBarrier) fail(Fault::kBarrierWord, address, write, actor);
  if (write.id == kHost) return;
  if (write.id == kNobody) fail(Fault::kUnwritten, address, write, actor);
  if (cell.flags & kFlagInFlight) fail(Fault::kInFlight, address, write, actor);
  if (!actor.knows(write.id, write.tick)) fail(Fault::kReadOfWrite, address, write, actor);
  if (actor.async && !(cell.flags & kFlagAsync) && !fenced(write, actor)) fail(Fault::kProxy, address, write, actor);
}

// Whether an ordinary write has been fenced for the async proxy: by the writer, before it told others; and, where the
// writer was in another block, by the reader too, after it was told. (PTX asks for one fence on the way. Two are what
// published kernels have, and a kernel that cannot be tried on hardware should not be the first with one.)
bool Shadow::fenced(const Mark& write, const Actor& actor) const {
  const bool other_block = write.id / ids_per_block != actor.self / ids_per_block;
  const bool within = shared_ && !other_block;
  if (write.id == actor.self) return (within ? actor.self_fenced_shared : actor.self_fenced) >= write.tick;
  if ((within ? actor.view->fenced_shared(write.id) : actor.view->fenced(write.id)) < write.tick) return false;
  if (!other_block) return true;
  const View* mine = shared_ ? actor.at_fence_shared : actor.at_fence;
  return mine && mine->known(write.id) >= write.tick;
}

void Shadow::check_write(const Cell& cell, uint64_t address, const Actor& actor, bool atomic) {
  const Mark& write = cell.write;
  if (cell.flags & kFlagBarrier) fail(Fault::kBarrierWord, address, write, actor);
  if (cell.flags & kFlagInFlight) fail(Fault::kInFlight, address, write, actor);
  if (write.id != kNobody && write.id != kHost && !(atomic && (cell.flags & kFlagAtomic))) {
    const bool landed = actor.async && (cell.flags & kFlagAsync);  // a copy over a copy
    if (!(landed ? actor.knows_finished(write.id, write.tick) : actor.knows(write.id, write.tick))) {
      fail(Fault::kWriteOfWrite, address, write, actor);
    }
    if (actor.async && !landed && !fenced(write, actor)) fail(Fault::kProxy, address, write, actor);
  }
  if (cell.read.id == kNobody) return;
  if (!actor.knows_finished(cell.read.id, cell.read.tick)) fail(Fault::kWriteOfRead, address, cell.read, actor);
  if (!cell.more) return;
  for (const Mark& read : more_[cell.more]) {
    if (!actor.knows_finished(read.id, read.tick)) fail(Fault::kWriteOfRead, address, read, actor);
  }
}

void Shadow::mark_read(Cell& cell, const Actor& actor) {
  const Mark mine = {actor.tick, actor.mark, actor.site};
  const auto replaceable = [&](const Mark& old) {
    return old.id == kNobody || source_of[old.id] == source_of[actor.mark] ||
           (parts_of[old.id] == 1 && actor.knows(old.id, old.tick));
  };
  if (replaceable(cell.read)) {
    cell.read = mine;
    return;
  }
  std::vector<Mark>& more = list_of(cell);
  const auto old = std::find_if(more.begin(), more.end(), replaceable);
  if (old == more.end()) {
    more.push_back(mine);
  } else {
    *old = mine;
  }
}

// The cell's other reads; makes room for them where it has none.
std::vector<Shadow::Mark>& Shadow::list_of(Cell& cell) {
  if (!cell.more) {
    if (free_more_.empty()) {
      more_.emplace_back();
      free_more_.push_back(static_cast<uint32_t>(more_.size() - 1));
    }
    cell.more = free_more_.back();
    free_more_.pop_back();
  }
  return more_[cell.more];
}

void Shadow::forget_reads(Cell& cell) {
  cell.read = {0, kNobody, 0};
  if (!cell.more) return;
  more_[cell.more].clear();
  free_more_.push_back(cell.more);
  cell.more = 0;
}

void Shadow::read(uint64_t address, size_t bytes, const Actor* actors, int count) {
  each(address, bytes, false, [&](Cell& cell, uint64_t at) {
    for (int i = 0; i < count; ++i) check_read(cell, at, actors[i]);
    mark_read(cell, actors[0]);
  });
}

void Shadow::write(uint64_t address, size_t bytes, const Actor& actor) {
  const uint8_t flags = (actor.async ? kFlagAsync : 0) | (actor.in_flight ? kFlagInFlight : 0);
  each(address, bytes, true, [&](Cell& cell, uint64_t at) {
    check_write(cell, at, actor, false);
    forget_reads(cell);
    cell.write = {actor.tick, actor.mark, actor.site};
    cell.flags = flags;
  });
}

void Shadow::atomic(uint64_t address, size_t bytes, const Actor& actor) {
  each(address, bytes, true, [&](Cell& cell, uint64_t at) {
    check_write(cell, at, actor, true);
    forget_reads(cell);
    cell.write = {actor.tick, actor.mark, actor.site};
    cell.flags = kFlagAtomic;
  });
}

void Shadow::atomic_read(uint64_t address, size_t bytes, const Actor& actor) {
  each(address, bytes, false, [&](Cell& cell, uint64_t at) {
    if (!(cell.flags & kFlagAtomic)) check_read(cell, at, actor);
  });
}

void Shadow::land(uint64_t address, size_t bytes, Id mark, Tick tick) {
  each(address, bytes, true, [&](Cell& cell, uint64_t) {
    cell.write.id = mark;
    cell.write.tick = tick;
    cell.flags &= ~kFlagInFlight;
  });
}

void Shadow::set_barrier_word(uint64_t address) {
  each(address, 8, false, [&](Cell& cell, uint64_t) { cell.flags |= kFlagBarrier; });
}

}  // namespace fastflow::emulator
