// Shadow memory: who wrote and who read each pair of bytes last, so that an access that no barrier orders is found
// under every schedule, whether or not it happened to do harm.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "clock.h"

namespace fastflow::emulator {

// By id: 4 for the products of a warpgroup. What they read is marked with the first of four ids; each of the four warps
// waits for itself, and lets the others know of one of the ids.
extern const uint8_t* parts_of;

// Who makes an access, what it knows, and how the access is to be marked.
struct Actor {
  const View* view;
  Id self;     // its own earlier accesses, from tick `birth` on, are in order
  Tick birth;  //
  // Ordinary writes before an access through the async proxy: its own up to these ticks have passed a fence, and what
  // others wrote is in the views that it had when it fenced itself.
  Tick self_fenced, self_fenced_shared;
  const View *at_fence, *at_fence_shared;
  Id mark;    // the access is marked with this id and tick
  Tick tick;  //
  uint16_t site;
  bool async;      // through the async proxy: the copy engine or wgmma
  bool in_flight;  // a write whose bytes come later: land() ends that

  bool knows(Id id, Tick at) const { return (id == self && at >= birth) || view->known(id) >= at; }
  bool knows_finished(Id id, Tick at) const {
    if (id == self && at >= birth) return true;
    for (int i = parts_of[id]; i-- > 0;) {
      if (view->finished(id + i) < at) return false;
    }
    return true;
  }
};

class Shadow {
 public:
  enum class Fault {
    kUnwritten,
    kInFlight,
    kReadOfWrite,
    kWriteOfWrite,
    kWriteOfRead,
    kProxy,
    kBarrierWord,
  };
  // What an access collided with.
  struct Collision {
    Fault fault;
    uint64_t address;
    Id other;
    Tick tick;
    uint16_t site;
  };

  Shadow(uint64_t base, size_t bytes, bool shared);

  uint64_t base() const { return base_; }
  uint64_t end() const { return base_ + bytes_; }
  bool contains(uint64_t address, size_t bytes) const { return address >= base_ && address + bytes <= end(); }

  // `actors[0]` is marked as the reader; what was written must be known to all of them.
  void read(uint64_t address, size_t bytes, const Actor* actors, int count);
  void write(uint64_t address, size_t bytes, const Actor& actor);
  void atomic(uint64_t address, size_t bytes, const Actor& actor);  // reads and writes
  void atomic_read(uint64_t address, size_t bytes, const Actor& actor);
  void land(uint64_t address, size_t bytes, Id mark, Tick tick);
  void set_barrier_word(uint64_t address);

 private:
  static constexpr uint8_t kFlagInFlight = 1, kFlagAtomic = 2, kFlagAsync = 4, kFlagBarrier = 8;
  struct Mark {
    Tick tick;
    Id id;
    uint16_t site;
  };
  struct Cell {
    Mark write, read;  // the youngest read by anyone
    uint32_t more;     // other reads since the last write: index into more_, or 0
    uint8_t flags;
  };
  static constexpr uint32_t kChunk = 16, kGranule = 2, kParts = kChunk / kGranule;
  struct Chunk {
    Cell whole;
    uint32_t split;  // 0, or 1 + index into parts_: then `whole` is void
  };

  template <class F>
  void each(uint64_t address, size_t bytes, bool overwrites, const F& f);
  void check_write(const Cell& cell, uint64_t address, const Actor& actor, bool atomic);
  void check_read(const Cell& cell, uint64_t address, const Actor& actor);
  bool fenced(const Mark& write, const Actor& actor) const;
  void mark_read(Cell& cell, const Actor& actor);
  void forget_reads(Cell& cell);
  std::vector<Mark>& list_of(Cell& cell);
  [[noreturn]] void fail(Fault fault, uint64_t address, const Mark& other, const Actor& actor);

  uint64_t base_;
  size_t bytes_;
  bool shared_;  // memory of one block, unwritten at first; else global memory, written by the host
  std::vector<Chunk> chunks_;
  std::vector<std::array<Cell, kParts>> parts_;
  std::vector<uint32_t> free_parts_;
  std::vector<std::vector<Mark>> more_;
  std::vector<uint32_t> free_more_;
};

// Throws what there is to say, which takes more than this file knows.
[[noreturn]] void report(const Shadow::Collision& found, const Actor& actor, bool shared);

// Lanes of one warp (or copies, or products, of one source) replace each other's marks of reading.
extern const uint16_t* source_of;  // by id
extern int ids_per_block;

}  // namespace fastflow::emulator
