#include "clock.h"

#include <algorithm>
#include <cstring>

namespace fastflow::emulator {

Views* views = nullptr;

Views::Views(uint32_t ids) : ids_(ids), joined_(256) { views = this; }

Views::~Views() {
  joined_.clear();
  views = nullptr;
}

View* Views::allocate() {
  if (free_.empty()) {
    constexpr int count = 16;
    const size_t words = 2 + 4 * static_cast<size_t>(ids_);
    memory_.push_back(std::make_unique<uint32_t[]>(count * words));
    for (int i = 0; i < count; ++i) free_.push_back(reinterpret_cast<View*>(memory_.back().get() + i * words));
  }
  View* view = free_.back();
  free_.pop_back();
  view->references = 1;
  view->size = ids_;
  return view;
}

ViewRef Views::nothing() {
  View* view = allocate();
  std::memset(view->ticks, 0, 4 * ids_ * sizeof(Tick));
  return ViewRef(view);
}

ViewRef Views::copy(const ViewRef& from) {
  View* view = allocate();
  std::memcpy(view->ticks, from->ticks, 4 * ids_ * sizeof(Tick));
  return ViewRef(view);
}

ViewRef Views::join(const ViewRef& a, const ViewRef& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  const auto hash = reinterpret_cast<uintptr_t>(a.get()) * 31 + reinterpret_cast<uintptr_t>(b.get());
  Joined& cached = joined_[(hash >> 4) % joined_.size()];
  if (cached.a == a && cached.b == b) return cached.result;
  const Tick *x = a->ticks, *y = b->ticks;
  bool a_more = false, b_more = false;
  for (uint32_t i = 0; i < 4 * ids_; ++i) {
    a_more |= x[i] > y[i];
    b_more |= y[i] > x[i];
  }
  ViewRef result = b_more ? b : a;
  if (a_more && b_more) {
    result = ViewRef(allocate());
    for (uint32_t i = 0; i < 4 * ids_; ++i) result->ticks[i] = std::max(x[i], y[i]);
  }
  cached = {a, b, result};
  return result;
}

ViewRef Views::with(const ViewRef& view, Id id, Tick tick) {
  if (view->known(id) >= tick) return view;
  ViewRef result = copy(view);
  result->ticks[id] = tick;
  result->ticks[ids_ + id] = std::max(result->finished(id), tick);
  return result;
}

ViewRef Views::finished_only(const ViewRef& view) {
  ViewRef result = nothing();
  std::memcpy(result->ticks + ids_, view->ticks + ids_, ids_ * sizeof(Tick));
  return result;
}

ViewRef Gather::join() {
  ViewRef all;
  for (const ViewRef& view : views_) all = views->join(all, view);
  if (!stamps_.empty()) {
    all = views->copy(all);
    const uint32_t size = all->size;
    for (const Stamp& stamp : stamps_) {
      const Tick told[4] = {stamp.tick, stamp.tick, stamp.fenced, stamp.fenced_shared};
      for (int i = 0; i < 4; ++i) {
        Tick& tick = all->ticks[i * size + stamp.id];
        tick = std::max(tick, told[i]);
      }
    }
  }
  views_.clear();
  stamps_.clear();
  return all;
}

}  // namespace fastflow::emulator
