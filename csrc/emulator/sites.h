// The places where kernels call the wrappers, and the faults that tests inject there.
#pragma once

#include <cstdint>
#include <deque>
#include <source_location>
#include <string>

namespace fastflow::emulator {

enum class Kind : uint8_t {
  kSyncThreads,
  kSyncWarp,
  kNamedBarrierSync,
  kNamedBarrierArrive,
  kShuffle,
  kLoadShared,
  kStoreShared,
  kLoadGlobal,
  kStoreGlobal,
  kAtomicAdd,
  kLoadAcquire,
  kAddRelease,
  kWaitAtLeast,
  kFence,
  kCopyAsync,
  kCopyCommit,
  kCopyWait,
  kLoadMatrix,
  kMma,
  kMbarrierInit,
  kFenceMbarrierInit,
  kMbarrierArrive,
  kMbarrierArriveExpect,
  kMbarrierArriveCluster,
  kMbarrierArriveRelaxed,
  kMbarrierWait,
  kMbarrierWaitCluster,
  kTmaLoad,
  kFenceProxyAsync,
  kWgmmaFence,
  kWgmmaCommit,
  kWgmmaWait,
  kWgmma,
  kClusterArrive,
  kClusterWait,
  kClusterSync,
  kStoreSharedCluster,
  kRegistersRelease,
  kRegistersAcquire,
  kCount,
};

struct KindInfo {
  const char* name;
  bool synchronises;     // skip() makes sense: whoever depends on it must notice
  const char* operands;  // what shift() moves, by operand: comma-separated names
};
const KindInfo& info(Kind kind);

constexpr int kMostOperands = 5;

struct Site {
  const char* file;
  uint32_t line, column;
  Kind kind;
  uint16_t index;
  uint64_t calls = 0;
  uint32_t bytes = 0;  // of one access, where it is one
  bool skipped = false;
  int64_t shift[kMostOperands] = {};

  std::string where() const;
  std::string text() const;  // with the kind
};

class Sites {
 public:
  Site& find(Kind kind, const std::source_location& at);
  std::deque<Site>& all() { return sites_; }
  Site& at(size_t index);
  void forget();  // all of them, with their faults

 private:
  static constexpr size_t kSlots = 8192;
  Site* slots_[kSlots] = {};
  std::deque<Site> sites_;
};

extern Sites sites;

// To be called first in every wrapper: counts, and lets others run where the schedule says so.
Site& enter(Kind kind, const std::source_location& at);

}  // namespace fastflow::emulator
