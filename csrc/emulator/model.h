// The pretended GPU: threads, warps, blocks and clusters of the launch that runs, and what they wait for.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "clock.h"
#include "engine.h"
#include "fiber.h"
#include "shadow.h"
#include "sites.h"

namespace fastflow::emulator {

struct Warp;
struct Block;
struct Cluster;
struct Mbarrier;

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kMostMbarriers = 64;
constexpr int kMostWarpgroups = 8;

// What a thread that cannot go on waits for; for the report of a deadlock.
enum class Waits : uint8_t { kNothing, kWarp, kWarpgroup, kBarrier, kMbarrier, kFlag, kCluster, kRegisters };

struct Copy {  // one cp.async
  uint32_t dst;
  const void* src;
  bool valid, landed;
};

struct Thread {
  void* stack_pointer = nullptr;
  Warp* warp = nullptr;
  Block* block = nullptr;
  int index = 0, lane = 0;  // in the block, in the warp
  bool done = false;

  Waits waits = Waits::kNothing;
  const Site* waits_at = nullptr;
  const void* waits_for = nullptr;  // a barrier, an mbarrier, or a flag
  uint32_t waits_value = 0;         // parity, or the flag's value

  Id id = 0;
  Tick birth = 1, tick = 1, fenced = 0, fenced_shared = 0;
  ViewRef view, at_fence, at_fence_shared;  // the latter when it last fenced for the async proxy

  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;

  // of relaxed atomic operations, which order only together with a fence
  ViewRef fence_view, seen_by_atomics;
  Stamp fence_stamp{};

  Actor actor(const Site& site) const {
    return {view.get(), id,   birth,      fenced, fenced_shared, at_fence.get(), at_fence_shared.get(),
            id,         tick, site.index, false,  false};
  }
  Stamp stamp() const { return {id, tick, fenced, fenced_shared}; }
  void acquire(const ViewRef& told) { view = views->join(view, told); }
  void release(Gather& to) {
    to.add(view, stamp());
    ++tick;
  }
};

// An accumulator while products into it are under way. The threads' registers hold NaN meanwhile.
struct Accumulator {
  float* registers[128];
  int n;
  uint32_t last;              // number of the last product into it
  unsigned held_by;           // bit per warp: still under way there
  std::vector<float> values;  // [64, n]
};

struct Product {
  Accumulator* accumulator;
  Element type;
  int n;
  uint32_t a, b, a_stride, b_stride;
  bool accumulate;
};

struct Warpgroup {
  Block* block = nullptr;
  int first_warp = 0;
  Id id = 0;
  Tick start = 0;  // product number i is tick start + i
  uint32_t issued = 0, computed = 0;
  std::deque<Product> products;  // computed + 1 ... issued
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  // a wgmma that the warps gather for
  unsigned arrived = 0;
  const Site* site = nullptr;
  struct Call {
    Element type;
    int n;
    uint64_t a, b;
    bool accumulate;
    float* registers[32];
  } calls[4];
};

struct Warp {
  Block* block = nullptr;
  int index = 0;  // in the block
  int slot = 0;   // among all warps
  uint32_t all = 0, runnable = 0, alive = 0;
  Thread lanes[32];

  // the collective that lanes are gathering for
  uint32_t gathered = 0;
  const Site* site = nullptr;
  void* arguments[32] = {};

  bool fenced_wgmma = false;
  std::vector<uint32_t> groups;   // last product of each group of wgmma that has not been waited for
  uint32_t cluster_arrivals = 0;  // phases of the cluster's barrier
  bool cluster_arrived = false;   // without having waited
  int registers = 0;              // per thread
};

struct NamedBarrier {
  int expected = 0, arrived = 0;  // threads
  std::vector<Warp*> waiting, came;
  Gather told;
};

struct Mbarrier {
  Block* block = nullptr;
  uint32_t address = 0;
  uint32_t count = 0, pending = 0, phase = 0;  // phase: how many have ended
  int64_t bytes = 0;                           // expected and not come yet
  Id id = 0;
  Tick start = 0;
  // who may use it: its initialiser, threads that know of the initialisation, and the copy engine or other blocks only
  // after the fence
  Id init_id = 0;
  Tick init_tick = 0, fence_tick = 0;
  Gather told, told_block;         // by all arrivals; as far as the block's own threads may rely on it
  ViewRef visible, visible_block;  // the same of phases that have ended
  uint16_t init_site = 0;
};

struct RemoteAccess {
  Id id;
  Tick tick;
  uint16_t site;
};

struct Block {
  Cluster* cluster = nullptr;
  int rank = 0, slot = 0;
  Index index{};
  int threads = 0, alive = 0;
  std::vector<std::unique_ptr<Warp>> warps;
  std::deque<Warpgroup> warpgroups;
  std::vector<char> shared;
  std::unique_ptr<Shadow> shadow;
  NamedBarrier barriers[16];
  std::vector<std::unique_ptr<Mbarrier>> mbarriers;
  Gather at_exit;                    // what its threads knew when they left
  std::vector<RemoteAccess> remote;  // last access to this block's memory by each thread of another
  int free_registers = 0;            // of the multiprocessor's share
  bool exited = false;

  char* bytes(uint32_t address) { return shared.data() + (address - kSharedBase); }
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int alive = 0;
  uint32_t phase = 0;  // of its barrier
  Gather told;
  ViewRef visible;
};

// Something that happens on its own, sooner or later.
struct Delivery {
  enum class What : uint8_t { kBox, kArrival } what;
  Block* target;
  Mbarrier* barrier;
  // of a box
  TensorMap map;
  int64_t corner[4];
  uint32_t dst;
  // of an arrival
  ViewRef told, told_block;
  // who asked for it
  Thread* thread;
  const Site* site;
};

enum class Order : uint8_t { kForward, kReverse, kFirst, kLast, kRandom };
enum class Timing : uint8_t { kEarly, kLate, kRandom };

struct Schedule {
  Order order = Order::kForward;
  Timing timing = Timing::kEarly;
  uint64_t seed = 0;
};

struct Statistics {
  std::string kernel;
  uint64_t blocks, threads, switches, calls, barriers, mma, wgmma;
  uint64_t shared_read, shared_written, global_read, global_written, copied, boxes;  // bytes
};

// One launch.
class Launch {
 public:
  Launch(const Shape& shape, std::string kernel, const std::function<void()>& body, const Schedule& schedule);
  ~Launch();
  void run();

  // Makes the calling thread wait, runs others, and returns when it has been woken.
  void block(Waits waits, const Site& site, const void* what = nullptr, uint32_t value = 0);
  void switch_away();
  void let_others_run();  // anybody but the calling thread
  void wake(Thread& thread);
  void wake(Warp& warp, uint32_t lanes);
  void maybe_preempt();
  bool chance(int one_in) { return random_() % one_in == 0; }

  // Asynchronous things.
  void post(Delivery delivery);
  bool late_now();  // whether something that may happen now shall happen later

  Shadow* find_memory(const void* address, size_t bytes);
  bool watches_memory() const { return !memory_.empty(); }
  // What those learn who find at that address what others have released.
  ViewRef& told_by(const void* address) { return flags_[address]; }
  void wake_flag(const void* address);
  std::string name_of(Id id, Tick tick) const;
  Id mbarrier_id(const Block& block) const {
    return static_cast<Id>(block.slot * ids_per_block_ + shape_.threads + block.mbarriers.size());
  }
  Tick last_tick(Id id) const { return ticks_[id]; }

  Schedule schedule;
  Statistics statistics{};
  std::vector<Thread*> flag_waiters;
  std::string kernel;

 private:
  friend void fiber_main();
  void start_clusters();
  void retire_clusters();
  void start_block(Block& block, int slot, Index index);
  void finish_thread();
  void finish_block(Block& block);
  Thread* next();
  Warp* next_warp();
  Warp* ready_from(int slot, int step);
  Thread* lane_of(Warp& warp);
  bool deliver_one();
  void go_to(Thread* thread, void** from);
  [[noreturn]] void report_deadlock();

  Shape shape_;
  const std::function<void()>& body_;
  int ids_per_block_, resident_;
  Views views_;
  uint64_t all_clusters_;
  std::vector<uint16_t> sources_;
  std::vector<uint8_t> parts_;
  std::vector<Tick> ticks_;                         // by id, of blocks that have left
  std::vector<std::unique_ptr<Cluster>> clusters_;  // by slot
  std::vector<Warp*> warps_;                        // by slot; null where no block is
  std::vector<uint64_t> ready_;                     // bit per warp
  std::vector<Delivery> deliveries_;
  std::vector<std::unique_ptr<Shadow>> memory_;  // by address
  std::unordered_map<const void*, ViewRef> flags_;
  uint64_t next_cluster_ = 0;
  Warp* current_ = nullptr;
  Thread* avoided_ = nullptr;
  std::minstd_rand random_;
  void* main_stack_ = nullptr;
  std::exception_ptr error_;
};

extern Launch* launch;
extern Thread* self;
extern Stacks stacks;

inline void append(std::ostringstream&) {}
template <class First, class... Rest>
void append(std::ostringstream& to, const First& first, const Rest&... rest) {
  to << first;
  append(to, rest...);
}
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream to;
  append(to, parts...);
  return to.str();
}

std::string describe(const Thread& thread);
std::string hex(uint64_t value);
[[noreturn]] void fail_at(const Thread* thread, const Site* site, const std::string& what);
template <class... Parts>
[[noreturn]] void fail(const Site& site, const Parts&... parts) {
  fail_at(self, &site, text(parts...));
}

// Lets the lanes of the calling thread's warp meet. True for the last one, which acts for all and then calls
// release_warp() or block_warp(); the others return when it has.
bool last_of_warp(const Site& site, void* argument = nullptr);
void release_warp();
void block_warp(Waits waits, const Site& site, const void* what = nullptr, uint32_t value = 0);

// Checks, and says where the bytes are.
void check_shared(const Block& block, uint32_t address, size_t bytes, size_t alignment, const Site& site);
void land(Delivery& delivery);
Shadow* check_global(const void* address, size_t bytes, size_t alignment, const Site& site);
void finish_cluster_barrier(Cluster& cluster);

}  // namespace fastflow::emulator
