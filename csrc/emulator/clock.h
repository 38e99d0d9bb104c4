// Who has been told of what: vector clocks, shared between all threads that know the same.
//
// Everyone that touches memory (threads, and the copies and products that run on their own) has an id and counts ticks.
// An access is marked with the id and the tick of who made it. A View holds, for each id, up to which tick its accesses
// are known to have happened. Threads that leave one barrier together share one View, so that barriers are cheap.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace fastflow::emulator {

using Id = uint16_t;
using Tick = uint32_t;
constexpr Id kNobody = 0xffff;
constexpr Id kHost = 0xfffe;  // wrote before the launch: known to all

struct View {
  uint32_t references;
  uint32_t size;
  Tick ticks[1];  // four arrays of `size`

  // up to which tick accesses are visible to who holds this view
  Tick known(Id id) const { return ticks[id]; }
  // ... or at least done with: reads have their values, copies have come
  Tick finished(Id id) const { return ticks[size + id]; }
  // up to which tick a thread's ordinary writes are visible to the copy engine and to wgmma, too (fence.proxy.async)
  Tick fenced(Id id) const { return ticks[2 * size + id]; }
  // ... those to its block's shared memory (fence.proxy.async.shared::cta)
  Tick fenced_shared(Id id) const { return ticks[3 * size + id]; }
};

// What a thread tells of itself when it releases.
struct Stamp {
  Id id;
  Tick tick, fenced, fenced_shared;
};

class ViewRef {
 public:
  ViewRef() = default;
  explicit ViewRef(View* view) : view_(view) {}  // takes over one reference
  ViewRef(const ViewRef& other) : view_(other.view_) {
    if (view_) ++view_->references;
  }
  ViewRef(ViewRef&& other) noexcept : view_(std::exchange(other.view_, nullptr)) {}
  ViewRef& operator=(ViewRef other) noexcept {
    std::swap(view_, other.view_);
    return *this;
  }
  ~ViewRef();
  View* get() const { return view_; }
  View* operator->() const { return view_; }
  explicit operator bool() const { return view_ != nullptr; }
  bool operator==(const ViewRef& other) const { return view_ == other.view_; }

 private:
  View* view_ = nullptr;
};

// All views of one launch; there is one at a time.
class Views {
 public:
  explicit Views(uint32_t ids);
  ~Views();
  Views(const Views&) = delete;

  ViewRef nothing();  // knows of nobody
  ViewRef copy(const ViewRef& view);
  ViewRef join(const ViewRef& a, const ViewRef& b);  // either may be empty
  ViewRef with(const ViewRef& view, Id id, Tick tick);
  ViewRef finished_only(const ViewRef& view);  // without what is visible
  void recycle(View* view) { free_.push_back(view); }

 private:
  View* allocate();
  struct Joined {
    ViewRef a, b, result;
  };
  uint32_t ids_;
  std::vector<std::unique_ptr<uint32_t[]>> memory_;
  std::vector<View*> free_;
  std::vector<Joined> joined_;  // a warp's lanes ask for the same join one after the other
};

extern Views* views;

inline ViewRef::~ViewRef() {
  if (view_ && --view_->references == 0) views->recycle(view_);
}

// What several releases tell together.
class Gather {
 public:
  void add(const ViewRef& view, const Stamp& stamp) {
    add(view);
    stamps_.push_back(stamp);
  }
  void add(const ViewRef& view) {
    if (view && (views_.empty() || !(views_.back() == view))) views_.push_back(view);
  }
  bool empty() const { return views_.empty(); }
  ViewRef join();  // and forget

 private:
  std::vector<ViewRef> views_;
  std::vector<Stamp> stamps_;
};

}  // namespace fastflow::emulator
