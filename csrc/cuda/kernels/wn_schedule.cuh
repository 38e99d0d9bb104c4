// How the blocks of one launch share the work of a whole stack of layers.
//
// The work is cut into items: one layer's outputs for one tile of time steps of one batch entry, numbered layer by
// layer. Unit i of n (a block, or a cluster of blocks) takes the items i, i + n, i + 2n, ... in this order. Tiles are
// handed from layer to layer through memory (that is, the L2 cache) with one counter per tile; nothing returns to the
// host. An item waits for smaller items only, and all units are on the GPU at once, which a cooperative launch ensures
// whatever else runs there: the smallest unfinished item can always run, so there is no deadlock.
#pragma once

#include <arch/barrier.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>

#include "../../params.h"

namespace fastflow {

struct WnItem {
  int32_t layer, batch, tile;
  int32_t t0;  // the tile's first step
};

// TILE steps to a tile, the last one of each batch entry may be short.
template <int TILE>
struct WnSchedule {
  int32_t tiles;      // per batch entry
  int32_t per_layer;  // batch * tiles
  int32_t items;      // of all layers

  template <class T>
  __host__ __device__ explicit WnSchedule(const WnParams<T>& p)
      : tiles((p.time + TILE - 1) / TILE), per_layer(p.batch * tiles), items(p.layers * per_layer) {}

  __host__ __device__ WnItem item(int32_t index) const {
    const int32_t layer = index / per_layer, within = index - layer * per_layer;
    const int32_t batch = within / tiles, tile = within - batch * tiles;
    return {layer, batch, tile, tile * TILE};
  }

  // Waits until the item may run; to be called by all lanes of one warp. Other threads need a barrier after it.
  // `publishers` is how many times publish() is called for each tile.
  template <class T>
  __device__ __forceinline__ void wait(const WnParams<T>& p, const WnItem& item, uint32_t publishers) const {
    if (item.layer == 0) return;
    const auto& mine = p.layer[item.layer];
    const auto& before = p.layer[item.layer - 1];
    const int32_t span = (p.kernel_size - 1) * mine.dilation, span_before = (p.kernel_size - 1) * before.dilation;
    // The steps of the layer before that this item reads reach `left` and `right` over its own. Its outputs replace
    // those of two layers ago, which the layer before reads: its tiles that read them must have finished, too.
    const int32_t left = max_of(mine.left_padding, span_before - before.left_padding);
    const int32_t right = max_of(span - mine.left_padding, before.left_padding);
    const int32_t first = max_of(item.t0 - left, 0) / TILE;
    const int32_t last = min_of(item.t0 + TILE - 1 + right, p.time - 1) / TILE;
    const uint32_t* flags = p.done + static_cast<int64_t>(item.layer - 1) * per_layer + item.batch * tiles;
    for (int32_t tile = first + static_cast<int32_t>(threadIdx.x % 32); tile <= last; tile += 32) {
      arch::wait_at_least(flags + tile, publishers);
    }
    arch::sync_warp();  // where a barrier of the block follows, this still saves ptxas from spilling
  }

  // Tells that a publisher's part of the item is stored; to be called by one thread, after a barrier with all threads
  // that stored. The release covers what it learned of by that barrier: nobody needs a fence of its own.
  template <class T>
  __device__ __forceinline__ void publish(const WnParams<T>& p, const WnItem& item) const {
    if (item.layer + 1 < p.layers) {
      arch::add_release(p.done + static_cast<int64_t>(item.layer) * per_layer + item.batch * tiles + item.tile, 1);
    }
  }

 private:
  static __host__ __device__ int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }
  static __host__ __device__ int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
};

}  // namespace fastflow
