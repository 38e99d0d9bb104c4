// How the blocks of one launch share the work of a whole stack of layers.
//
// The work is cut into items: one layer's outputs for a tile of TILE frames of one phase of one batch entry. (A tile's
// steps lie WnParams::phases apart; where that is 1 every step is a frame, and they are neighbours.) Items are numbered
// layer by layer, and GROUP of them that follow each other in a layer form a group. Unit i of n (a block, or a cluster
// of blocks) takes the groups i, i + n, i + 2n, ... in this order. Tiles are handed from layer to layer through memory
// (that is, the L2 cache) with one counter per tile; nothing returns to the host. An item waits for items of smaller
// groups only, and all units are on the GPU at once, which a cooperative launch ensures whatever else runs there: the
// smallest unfinished group can always run, so there is no deadlock.
#pragma once

#include <arch/barrier.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>

#include "../../params.h"

namespace fastflow {

struct WnItem {
  int32_t layer, batch, phase;
  int32_t frame0;      // the tile's first frame
  int32_t t0, stride;  // the tile's step i is t0 + i * stride
};

// Everything is derived from the parameters where it is needed: it would take more registers than there are to keep it.
template <class T, int TILE, int GROUP = 1>
struct WnSchedule {
  const WnParams<T>& p;

  __host__ __device__ explicit WnSchedule(const WnParams<T>& p) : p(p) {}

  __host__ __device__ int32_t tiles() const { return (p.frames + TILE - 1) / TILE; }  // of a phase of a batch entry
  __host__ __device__ int32_t per_layer() const { return p.batch * p.phases * tiles(); }
  __host__ __device__ int32_t groups_per_layer() const { return (per_layer() + GROUP - 1) / GROUP; }
  __host__ __device__ int32_t groups() const { return p.layers * groups_per_layer(); }

  // Item `rank` of a group. Beyond the end of a short group there is an item of which nothing is inside the tensors,
  // neither its batch entry nor its steps.
  //
  // Order within a batch entry: GROUP tiles of the first phase, the same frames of the other phases, then the next
  // frames. So a group's items share one phase's weights, and what an item waits for is not far from it in its layer.
  __host__ __device__ WnItem item(int32_t group, int32_t rank = 0) const {
    const int32_t layer = group / groups_per_layer(), index = (group - layer * groups_per_layer()) * GROUP + rank;
    const int32_t batch = index / (p.phases * tiles()), within = index - batch * (p.phases * tiles());
    const int32_t row = within / (GROUP * p.phases), rest = within - row * (GROUP * p.phases);
    const int32_t width = min_of(GROUP, tiles() - row * GROUP);  // of the row of tiles, in each phase
    const int32_t phase = rest / width, frame0 = (row * GROUP + rest - phase * width) * TILE;
    return {layer, batch, phase, frame0, batch < p.batch ? frame0 * p.phases + phase : p.time, p.phases};
  }

  // Which items of a group share a phase's weights with item `rank`, a bit for each: those of its row of tiles. (There
  // may be more, of other rows; but what `item` counts takes several divisions, and this none.)
  __device__ __forceinline__ uint16_t same_phase(const WnItem& item, int32_t rank) const {
    constexpr uint32_t all = (1u << GROUP) - 1;
    if (p.phases == 1) return all;
    const int32_t tile = item.frame0 / TILE, column = tile % GROUP, width = min_of(GROUP, tiles() - (tile - column));
    return static_cast<uint16_t>((((1u << width) - 1) << GROUP >> (GROUP + column - rank)) & all);
  }

  // Where the steps of an item are, shifted by some: again in one phase, in frames that may be outside.
  struct Source {
    int32_t phase, frame0;
  };
  __device__ __forceinline__ Source source(const WnItem& item, int32_t shift) const {
    const int32_t step = item.phase + shift, below = step < 0 ? p.phases - 1 : 0;
    const int32_t frame = (step - below) / p.phases;  // rounded down
    return {step - frame * p.phases, item.frame0 + frame};
  }

  // Waits until the item may run; to be called by all lanes of one warp. Other threads need a barrier after it.
  // `publishers` is how many times publish() is called for each tile.
  //
  // What must have finished in the layer before: the tiles that this item reads, its own shifted by its taps; and since
  // its outputs replace those of two layers ago, the tiles whose items read these, shifted the other way round by the
  // taps of the layer before. Shifted frames lie in two tiles at most: those of the first and of the last.
  __device__ __forceinline__ void wait(const WnItem& item, uint32_t publishers) const {
    if (item.layer == 0 || item.batch >= p.batch) return;
    const uint32_t* flags = flags_of(item.layer - 1, item.batch);
    const int32_t half = 2 * p.kernel_size;
    for (int32_t i = static_cast<int32_t>(threadIdx.x % 32); i < 2 * half; i += 32) {
      const bool reads = i < half;
      const WnLayerArrays<T>& layer = p.layer[item.layer - (reads ? 0 : 1)];
      const int32_t shift = i / 2 % p.kernel_size * layer.dilation - layer.left_padding;
      const Source from = source(item, reads ? shift : -shift);
      const int32_t first = max_of(from.frame0, 0), last = min_of(from.frame0 + TILE, p.frames) - 1;
      if (first <= last) {
        arch::wait_at_least(flags + from.phase * tiles() + (i % 2 == 0 ? first : last) / TILE, publishers);
      }
    }
    arch::sync_warp();  // where a barrier of the block follows, this still saves ptxas from spilling
  }

  // Tells that a publisher's part of the item is stored; to be called by one thread, after a barrier with all threads
  // that stored. The release covers what it learned of by that barrier: nobody needs a fence of its own.
  __device__ __forceinline__ void publish(const WnItem& item) const {
    if (item.layer + 1 < p.layers && item.batch < p.batch) {
      arch::add_release(flags_of(item.layer, item.batch) + item.phase * tiles() + item.frame0 / TILE, 1);
    }
  }

 private:
  __device__ __forceinline__ uint32_t* flags_of(int32_t layer, int32_t batch) const {
    return p.done + static_cast<int64_t>(layer) * per_layer() + batch * (p.phases * tiles());
  }
  static __host__ __device__ int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }
  static __host__ __device__ int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
};

}  // namespace fastflow
