#include "sites.h"

#include <cstring>
#include <stdexcept>

namespace fastflow::emulator {

Sites sites;

const KindInfo& info(Kind kind) {
  static constexpr KindInfo kinds[] = {
      {"sync_threads", true, ""},
      {"sync_warp", true, ""},
      {"named_barrier_sync", true, ""},
      {"named_barrier_arrive", true, ""},
      {"shuffle", false, "lane"},
      {"load_shared", false, "address"},
      {"store_shared", false, "address"},
      {"load_global", false, "address"},
      {"store_global", false, "address"},
      {"atomic_add", false, "address"},
      {"load_acquire", false, "address"},
      {"add_release", true, "address"},
      {"wait_at_least", true, "address,value"},
      {"fence", true, ""},
      {"copy_async_16", false, "destination,source"},
      {"copy_commit", true, ""},
      {"copy_wait", true, "groups"},
      {"load_matrix_x4", false, "address"},
      {"mma", false, ""},
      {"mbarrier_init", true, "address,count"},
      {"fence_mbarrier_init", true, ""},
      {"mbarrier_arrive", true, "address"},
      {"mbarrier_arrive_expect", true, "address,bytes"},
      {"mbarrier_arrive_cluster", true, "address,rank"},
      {"mbarrier_arrive_relaxed", true, "address,rank"},
      {"mbarrier_wait", true, "address,parity"},
      {"mbarrier_wait_cluster", true, "address,parity"},
      {"tma_load", true, "destination,c0,c1,c2,c3"},
      {"fence_proxy_async", true, ""},
      {"wgmma_fence", true, ""},
      {"wgmma_commit", true, ""},
      {"wgmma_wait", true, "groups"},
      {"wgmma", false, "a,b"},
      {"cluster_arrive", true, ""},
      {"cluster_wait", true, ""},
      {"cluster_sync", true, ""},
      {"store_shared_cluster", false, "address,rank"},
      {"registers_release", false, ""},
      {"registers_acquire", false, ""},
  };
  static_assert(sizeof(kinds) / sizeof(kinds[0]) == static_cast<size_t>(Kind::kCount));
  return kinds[static_cast<size_t>(kind)];
}

std::string Site::where() const { return std::string(file) + ":" + std::to_string(line); }

std::string Site::text() const { return std::string(info(kind).name) + " at " + where(); }

Site& Sites::find(Kind kind, const std::source_location& at) {
  // One place has as many addresses of its file's name as there are object files; the lines tell them apart well.
  size_t slot = (at.line() * 2654435761u + at.column() * 40503u + static_cast<size_t>(kind) * 97) % kSlots;
  for (;; slot = (slot + 1) % kSlots) {
    Site* site = slots_[slot];
    if (site == nullptr) break;
    if (site->line == at.line() && site->column == at.column() && site->kind == kind &&
        (site->file == at.file_name() || std::strcmp(site->file, at.file_name()) == 0)) {
      return *site;
    }
  }
  if (sites_.size() >= kSlots / 2) throw std::length_error("the emulator has no room for more call sites");
  Site site = {at.file_name(), at.line(), at.column(), kind, static_cast<uint16_t>(sites_.size())};
  sites_.push_back(site);
  slots_[slot] = &sites_.back();
  return sites_.back();
}

Site& Sites::at(size_t index) {
  if (index >= sites_.size()) throw std::out_of_range("no such site");
  return sites_[index];
}

void Sites::forget() {
  sites_.clear();
  std::memset(slots_, 0, sizeof(slots_));
}

}  // namespace fastflow::emulator
