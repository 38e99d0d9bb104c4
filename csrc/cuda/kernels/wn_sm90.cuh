// The WN block on Hopper's matrix units (sm_90a), half and bfloat16.
//
// One warp loads (the copy engine does the work), WGS warpgroups multiply, 64 time steps each. All matrix products are
// [steps, rows] = [steps, K] * [rows, K]^T with both operands in shared memory, so that zero padding, the borders
// between batch entries and the dilation's shifts are nothing but coordinates of boxes of a [B, T / P, P, C] tensor:
// what lies outside reads as zeros. A tile has one of the P phases, so that the same steps shifted by a tap are one box
// of another phase. K goes by 64 elements, the 128 bytes of a swizzled row.
//
//   for each pass of GB gate channels:  d[steps, 2 GB] = conditioning's K, then taps and channels    (rows: GB of tanh,
//                                       a[steps, GB]   = gate(d), into shared memory as T             GB of sigmoid)
//   for each block of 2 GB output rows: d[steps, 2 GB] = a * res_skip_weight^T, then residual sum and skips
//
//   loader      | wait empty[s] -> expect bytes on full[s] -> x and w boxes to stage s ------> next stage, pass, item
//   ... warpgroup 0 |        wait full[s] -> 4 wgmma -> those of the stage before are done: arrive on its empty -> ...
//   warpgroup 1 |        the same; it may be some stages ahead or behind, so its gate overlaps the other's products
//
// The ring of stages never drains: the loader is always as many stages ahead as there are, through the end of a pass,
// of the second product (which loads weights only) and of an item. The conditioning comes first, since it does not wait
// for the layer before.
//
// The blocks of a cluster work on one item and share loads by multicast:
//   by time: neighbouring tiles of steps; each block loads its share of the weights' rows for all. (The conditioning's
//            weights of a phase, where not all tiles have the same, are loaded by one block for those of that phase.)
//   by rows: one tile of steps; each block makes some of the passes and of the output blocks, loads its share of the
//            steps for all, and writes its gated channels into the shared memory of all.
#pragma once

#include <arch/barrier.cuh>
#include <arch/cluster.cuh>
#include <arch/mbarrier.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>
#include <arch/registers.cuh>
#include <arch/tma.cuh>
#include <arch/wgmma.cuh>

#include "../../params.h"
#include "wn_gate.cuh"
#include "wn_schedule.cuh"

namespace fastflow {

// What the copy engine needs to know of a layer's weights.
struct WnSm90LayerMaps {
  arch::TensorMap conv;      // [1, 2, G, k * C]
  arch::TensorMap cond;      // [P, 2, G, Cc]
  arch::TensorMap res_skip;  // [1, 1, R + S, G]
};

template <class T>
struct WnSm90Params {
  arch::TensorMap h;          // [B, T / P, P, C]
  arch::TensorMap states[2];  // [B, T / P, P, C]
  arch::TensorMap cond;       // [B, T / P, 1, Cc]
  WnSm90LayerMaps layer[WnParams<T>::kMaxLayers];
  WnParams<T> wn;
  int32_t stages;
};

enum class WnSplit { kNone, kTime, kRows };  // what the blocks of a cluster divide among them

template <class T, int GB, int WGS, int CLUSTER, WnSplit SPLIT>
struct WnSm90 {
  using type = T;
  static_assert(sizeof(T) == 2 && (CLUSTER > 1) == (SPLIT != WnSplit::kNone));

  static constexpr int kThreads = 128 * (WGS + 1);
  static constexpr int kSteps = 64 * WGS;  // of a block
  static constexpr int kRows = 2 * GB;     // of weights, per pass
  static constexpr int kCluster = CLUSTER;
  static constexpr WnSplit kSplit = SPLIT;
  // Each block of a cluster by time has a tile of its own; else the cluster has one.
  using Schedule = WnSchedule<T, kSteps, SPLIT == WnSplit::kTime ? CLUSTER : 1>;
  // Of a tile: each warpgroup when its part is stored.
  static constexpr int kPublishers = (SPLIT == WnSplit::kRows ? CLUSTER : 1) * WGS;

  // K of one stage, and the bytes of its rows.
  static constexpr int kDepth = 64, kRowBytes = 128;
  static constexpr int kXBytes = kSteps * kRowBytes, kWBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  // A box of x and one of w. w is loaded in shares, each of tanh or of sigmoid rows only.
  static constexpr int kXBox = SPLIT == WnSplit::kRows ? kSteps / CLUSTER : kSteps;
  static constexpr int kWBox = SPLIT == WnSplit::kTime ? kRows / CLUSTER : GB;

  // How the registers of 384 threads (168 each) are dealt: GB = 128 has 128 accumulators and up to 64 words of h or
  // skip that wait to be added. GB = 64 has half of that, which fits as it is.
  static constexpr bool kDealRegisters = GB == 128 && WGS == 2;
  static constexpr int kLoaderRegisters = 40, kConsumerRegisters = 232;

  static __host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
  // Shared memory: the stages, `a` in columns of 64 channels, the barriers.
  static __host__ __device__ int gated_bytes(int gate_channels) { return ceil_div(gate_channels, kDepth) * kXBytes; }
  static constexpr int kMostStages = 8, kBarrierBytes = (2 * kMostStages + 2) * 8;

  const WnSm90Params<T>& params;
  const WnParams<T>& p;
  const Schedule schedule;
  const int rank;              // of this block in its cluster
  const int unit, units;       // clusters
  const int gate_depth_steps;  // stages of one pass
  const int passes;            // of one block
  const int warpgroup;         // of the consumers; as a shuffle's result the compiler knows it to be the warp's
  int stage = 0;               // the ring's position
  uint32_t phase = 0;

  __device__ __forceinline__ explicit WnSm90(const WnSm90Params<T>& all)
      : params(all),
        p(all.wn),
        schedule(p),
        rank(CLUSTER > 1 ? static_cast<int>(arch::cluster_rank()) : 0),
        unit(static_cast<int>(blockIdx.x) / CLUSTER),
        units(static_cast<int>(gridDim.x) / CLUSTER),
        gate_depth_steps(
            p.kernel_size * ceil_div(p.channels, kDepth) +
            (p.cond == WnCond::kLocal ? ceil_div(p.cond_channels, kDepth) : 0)),
        passes(share_of(ceil_div(p.gate_channels, GB))),
        warpgroup(arch::shuffle(static_cast<int>(threadIdx.x / 128), 0) - 1) {}

  // By rows, each block makes every CLUSTER-th pass or output block. All make the same number, for the ring's sake:
  // beyond the last one the weights read as zeros and nothing is stored.
  static __device__ __forceinline__ int share_of(int count) {
    return SPLIT == WnSplit::kRows ? ceil_div(count, CLUSTER) : count;
  }
  __device__ __forceinline__ int number_of(int i) const { return SPLIT == WnSplit::kRows ? i * CLUSTER + rank : i; }

  __device__ __forceinline__ int output_blocks(int layer) const {
    return share_of(ceil_div(p.residual_rows(layer) + p.skip_channels, kRows));
  }
  // This block's item of a group.
  __device__ __forceinline__ WnItem item_of(int group) const {
    return schedule.item(group, SPLIT == WnSplit::kTime ? rank : 0);
  }

  __device__ __forceinline__ arch::shared_t stage_x() const { return arch::shared_memory() + stage * kStageBytes; }
  __device__ __forceinline__ arch::shared_t stage_w() const { return stage_x() + kXBytes; }
  __device__ __forceinline__ arch::shared_t gated() const {
    return arch::shared_memory() + params.stages * kStageBytes;
  }
  __device__ __forceinline__ arch::shared_t barriers() const { return gated() + gated_bytes(p.gate_channels); }
  __device__ __forceinline__ arch::shared_t full(int s) const { return barriers() + 16 * s; }
  __device__ __forceinline__ arch::shared_t empty(int s) const { return barriers() + 16 * s + 8; }
  // By rows: `a` is complete, with the other blocks' channels; `a` may be overwritten by all.
  __device__ __forceinline__ arch::shared_t gated_full() const { return full(params.stages); }
  __device__ __forceinline__ arch::shared_t gated_empty() const { return empty(params.stages); }

  __device__ __forceinline__ void advance() {
    if (++stage == params.stages) {
      stage = 0;
      phase ^= 1;
    }
  }

  // By one thread, before a barrier of the whole cluster.
  __device__ __forceinline__ void init_barriers() const {
    constexpr int consumer_warps = CLUSTER * WGS * 4;
    for (int s = 0; s < params.stages; ++s) {
      arch::mbarrier_init(full(s), 1);
      arch::mbarrier_init(empty(s), consumer_warps);
    }
    if constexpr (SPLIT == WnSplit::kRows) {
      arch::mbarrier_init(gated_full(), consumer_warps);
      arch::mbarrier_init(gated_empty(), consumer_warps);
    }
    arch::fence_mbarrier_init();
  }

  // ---- The loader: one warp. Its lanes wait together for other items; the first one waits for stages and gives the
  // orders. The others must not wait for stages: nothing holds the first one back, and two phases may have passed when
  // they look.

  static constexpr uint16_t kEveryone = (1 << CLUSTER) - 1;

  // Where a stage's steps and weights come from.
  struct Steps {
    const arch::TensorMap* map;  // null: none
    int column, phase, frame, batch;
  };
  struct Weights {
    const arch::TensorMap* map;
    int column, row;
    bool of_gate;  // then `row` is one of tanh, and the second half of the stage takes the same of sigmoid
    int phase;
    uint16_t blocks;  // by time: those for which this block loads, or waits for another that does
  };

  __device__ __forceinline__ void load(const Steps& x, const Weights& w) {
    if (threadIdx.x == 0) {
      arch::mbarrier_wait(empty(stage), phase ^ 1);
      const arch::shared_t barrier = full(stage);
      arch::mbarrier_arrive_expect(barrier, x.map ? kStageBytes : kWBytes);
      if (x.map) {
        if constexpr (SPLIT == WnSplit::kRows) {
          const int first = rank * kXBox;
          arch::tma_load_multicast(
              stage_x() + first * kRowBytes, x.map, barrier, x.column, x.phase, x.frame + first, x.batch, kEveryone);
        } else {
          arch::tma_load(stage_x(), x.map, barrier, x.column, x.phase, x.frame, x.batch);
        }
      }
      const auto load_share = [&](int first) {
        const arch::shared_t to = stage_w() + first * kRowBytes;
        const int row = w.of_gate ? w.row + first % GB : w.row + first, half = w.of_gate ? first / GB : 0;
        if constexpr (SPLIT == WnSplit::kTime) {
          arch::tma_load_multicast(to, w.map, barrier, w.column, row, half, w.phase, w.blocks);
        } else {
          arch::tma_load(to, w.map, barrier, w.column, row, half, w.phase);
        }
      };
      if (SPLIT == WnSplit::kTime && w.blocks == kEveryone) {
        load_share(rank * kWBox);
      } else if (SPLIT != WnSplit::kTime || w.blocks % (2u << rank) == 1u << rank) {  // the first of them
        for (int first = 0; first < kRows; first += kWBox) load_share(first);
      }
    }
    advance();
  }

  __device__ __forceinline__ void load_all() {
    for (int index = unit; index < schedule.groups(); index += units) {
      const WnItem item = item_of(index);
      const WnSm90LayerMaps& maps = params.layer[item.layer];
      const WnLayerArrays<T>& layer = p.layer[item.layer];
      const arch::TensorMap* x = item.layer == 0 ? &params.h : &params.states[(item.layer - 1) % 2];
      const uint16_t same_phase = SPLIT == WnSplit::kTime ? schedule.same_phase(item, rank) : kEveryone;
      if (index + units < schedule.groups() && threadIdx.x == 0) {
        const WnSm90LayerMaps& next = params.layer[schedule.item(index + units).layer];
        arch::tma_prefetch_map(&next.conv);
        arch::tma_prefetch_map(&next.res_skip);
        if (p.cond == WnCond::kLocal) arch::tma_prefetch_map(&next.cond);
      }

      for (int i = 0; i < passes; ++i) {
        const int row = number_of(i) * GB;
        if (p.cond == WnCond::kLocal) {
          for (int c = 0; c < p.cond_channels; c += kDepth) {
            load({&params.cond, c, 0, item.frame0, item.batch}, {&maps.cond, c, row, true, item.phase, same_phase});
          }
        }
        if (i == 0) {
          schedule.wait(item, kPublishers);
          arch::fence_proxy_async();  // the copy engine reads what other blocks stored by ordinary means
        }
        for (int tap = 0; tap < p.kernel_size; ++tap) {
          const auto from = schedule.source(item, tap * layer.dilation - layer.left_padding);
          // Where C is no multiple of 64, the weights' columns run into the next tap's: zeros of x meet them.
          for (int c = 0; c < p.channels; c += kDepth) {
            load(
                {x, c, from.phase, from.frame0, item.batch},
                {&maps.conv, tap * p.channels + c, row, true, 0, kEveryone});
          }
        }
      }
      const int blocks = output_blocks(item.layer);
      for (int i = 0; i < blocks; ++i) {
        for (int g = 0; g < p.gate_channels; g += kDepth) {
          load({}, {&maps.res_skip, g, number_of(i) * kRows, false, 0, kEveryone});
        }
      }
    }
  }

  // ---- The consumers: warpgroups 1 to WGS of the block.

  struct alignas(8) Pair {
    float lo, hi;
  };

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % 32); }
  // This thread's accumulators d[4 * j + 2 * r + e] are of step row() + 8 * r and row (of weights) 8 * j + column() +
  // e.
  static __device__ __forceinline__ int row() {
    return static_cast<int>((threadIdx.x - 128) / 32 * 16 + threadIdx.x % 32 / 4);
  }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x % 4 * 2); }

  // By a warp that has read what the barrier stands for: arrives at that barrier of each block of the cluster.
  __device__ __forceinline__ void have_read(arch::shared_t barrier) const {
    if constexpr (CLUSTER == 1) {
      if (lane() == 0) arch::mbarrier_arrive(barrier);
    } else {
      if (lane() < CLUSTER) arch::mbarrier_arrive_relaxed(barrier, lane());
    }
  }

  // Starts the products of the current stage; x comes with it, or else is part i of the gated tile. They are added to
  // d, or SET it.
  template <bool GATED, bool SET>
  __device__ __forceinline__ void start_stage(float (&d)[GB], int i) {
    arch::mbarrier_wait(full(stage), phase);
    const arch::shared_t x = (GATED ? gated() + i * kXBytes : stage_x()) + warpgroup * (64 * kRowBytes);
    const arch::shared_t w = stage_w();
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kRowBytes; k += 32) {
      arch::wgmma<T, kRows>(d, arch::wgmma_descriptor(x + k), arch::wgmma_descriptor(w + k), !SET || k > 0);
    }
    arch::wgmma_commit();
  }

  // d = x * w^T over `count` stages, or d += a * w^T for the GATED x. One stage's products stay under way while the
  // next ones are started; then the stage is empty.
  template <bool GATED>
  __device__ __forceinline__ void multiply(float (&d)[GB], int count) {
    if constexpr (GATED) arch::wgmma_keep(d);
    start_stage<GATED, !GATED>(d, 0);
    for (int i = 1; i < count; ++i) {
      const int before = stage;
      advance();
      start_stage<GATED, false>(d, i);
      arch::wgmma_wait<1>();
      have_read(empty(before));
    }
    arch::wgmma_wait<0>();
    arch::wgmma_keep(d);
    have_read(empty(stage));
    advance();
  }

  // What every step's gate gets beside the products, for this thread's channels; loaded before them, added after.
  __device__ __forceinline__ void load_gate_add(Pair (&add)[GB / 4], const WnItem& item, int channel0) const {
    const float* from = p.gate_add_of(item.layer, item.batch, item.phase);
#pragma unroll
    for (int j = 0; j < GB / 4; ++j) {
      const int channel = channel0 + j % (GB / 8) * 8 + column();
      add[j] = {0, 0};
      if (channel < p.gate_channels) {
        add[j] = arch::load_global<Pair>(from + (j < GB / 8 ? 0 : p.gate_channels) + channel);
      }
    }
  }

  // Adds that, projected conditioning, and the input bias's share.
  __device__ __forceinline__ void complete_gate(
      float (&d)[GB], const Pair (&add)[GB / 4], const WnItem& item, int t, int channel0) const {
    const WnLayerArrays<T>& layer = p.layer[item.layer];
    const int64_t rows = 2 * p.gate_channels;
#pragma unroll
    for (int j = 0; j < GB / 4; ++j) {
      d[4 * j] += add[j].lo;
      d[4 * j + 1] += add[j].hi;
      d[4 * j + 2] += add[j].lo;
      d[4 * j + 3] += add[j].hi;
    }
    if (p.cond == WnCond::kProjected) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int step = t + 8 * r * item.stride;
        if (step >= p.time) continue;
        const T* cond = layer.cond + item.batch * p.cond_batch + step * p.cond_step;
#pragma unroll
        for (int j = 0; j < GB / 4; ++j) {
          const int channel = channel0 + j % (GB / 8) * 8 + column();
          if (channel >= p.gate_channels) continue;
          Pair v;
          arch::unpack2<T>(
              arch::load_global<uint32_t>(cond + (j < GB / 8 ? 0 : p.gate_channels) + channel), v.lo, v.hi);
          d[4 * j + 2 * r] += v.lo;
          d[4 * j + 2 * r + 1] += v.hi;
        }
      }
    }
    if (p.tap_add) {
      const float* taps =
          p.tap_add + (item.layer * int64_t(p.tap_batch) + item.batch % p.tap_batch) * p.kernel_size * rows;
      for (int tap = 0; tap < p.kernel_size; ++tap, taps += rows) {
        const int source = t + tap * layer.dilation - layer.left_padding;
        const float first = source >= 0 && source < p.time ? 1.0f : 0.0f;
        const int source8 = source + 8 * item.stride;
        const float second = source8 >= 0 && source8 < p.time ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < GB / 4; ++j) {
          const int channel = channel0 + j % (GB / 8) * 8 + column();
          if (channel >= p.gate_channels) continue;
          const Pair v = arch::load_global<Pair>(taps + (j < GB / 8 ? 0 : p.gate_channels) + channel);
          d[4 * j] += first * v.lo;
          d[4 * j + 1] += first * v.hi;
          d[4 * j + 2] += second * v.lo;
          d[4 * j + 3] += second * v.hi;
        }
      }
    }
  }

  // Words i of the four lanes of a quad become the four words of lane i.
  static __device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
    const bool odd = lane() & 1, upper = lane() & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t got = arch::shuffle_xor(odd ? w[i] : w[i + 1], 1);
      (odd ? w[i] : w[i + 1]) = got;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t got = arch::shuffle_xor(upper ? w[i] : w[i + 2], 2);
      (upper ? w[i] : w[i + 2]) = got;
    }
  }

  // Byte offset in `a` of 16 bytes: 8 channels from a multiple of 8 on; of step row(), or that step + 8.
  static __device__ __forceinline__ uint32_t gated_offset(int r, int channel) {
    const uint32_t step = row() + 8 * r;
    return static_cast<uint32_t>(channel) / kDepth * kXBytes + step * kRowBytes + ((channel / 8u ^ step) % 8) * 16;
  }

  // a = gate(d), into this block's tile or into those of the whole cluster, swizzled as the copy engine does it.
  __device__ __forceinline__ void store_gated(const float (&d)[GB], int channel0) const {
    const arch::shared_t to = gated();
    const int columns = ceil_div(p.gate_channels, kDepth) * kDepth;  // zeros beyond G: their inputs are
#pragma unroll
    for (int j0 = 0; j0 < GB / 8; j0 += 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 4 * (j0 + i) + 2 * r;
          words[i] = arch::pack2<T>(
              WnGate<T>(d[at], d[at + GB / 2]).value(), WnGate<T>(d[at + 1], d[at + 1 + GB / 2]).value());
        }
        if (channel0 + 8 * j0 >= columns) continue;
        if constexpr (SPLIT == WnSplit::kRows) {
          transpose_quad(words);
          const uint4 piece = {words[0], words[1], words[2], words[3]};
          const arch::shared_t local = to + gated_offset(r, channel0 + 8 * (j0 + lane() % 4));
#pragma unroll
          for (int block = 0; block < CLUSTER; ++block) arch::store_shared_cluster<uint4>(local, block, piece);
        } else {
          // Eight rows by four lanes hit all 32 banks: 4-byte stores cost no more than wider ones would.
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            arch::store_shared<uint32_t>(
                to + gated_offset(r, channel0 + 8 * (j0 + i)) + column() * int(sizeof(T)), words[i]);
          }
        }
      }
    }
  }

  // ---- Outputs. Of each 32 output rows, lane q of a quad accesses the 8 from 8 * q on: 16 bytes of a step.

  static constexpr int kGroups = kRows / 32;

  // Where this block's row `r` of the outputs of a step is in memory: residual rows in `states`, then skips.
  __device__ __forceinline__ T* output_at(const WnItem& item, int step, int r) const {
    const int residual = p.residual_rows(item.layer);
    const int64_t at = int64_t(item.batch) * p.time + step;
    return r < residual ? p.states[item.layer % 2] + at * p.channels + r
                        : p.skip + at * p.skip_channels + (r - residual);
  }

  // Loads what the output rows from row0 on are added to: h, or the skips of the layers before. Before the product, so
  // that they come while it runs.
  __device__ __forceinline__ void load_old(uint4 (&old)[2][kGroups], const WnItem& item, int t, int row0) const {
    const int residual = p.residual_rows(item.layer), rows = residual + p.skip_channels;
    const bool accumulate = item.layer > 0 || p.skip_accumulate;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int step = t + 8 * r * item.stride;
      const T* h = item.layer == 0
                       ? p.h + item.batch * p.h_batch + step * p.h_step
                       : p.states[(item.layer - 1) % 2] + (int64_t(item.batch) * p.time + step) * p.channels;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        old[r][g] = {0, 0, 0, 0};
        const int mine = row0 + 32 * g + lane() % 4 * 8;
        if (step >= p.time || mine >= rows) continue;
        if (mine < residual) {
          old[r][g] = arch::load_global<uint4>(h + mine);
        } else if (accumulate) {
          old[r][g] = arch::load_global<uint4>(output_at(item, step, mine));
        }
      }
    }
  }

  // Unlike the gate's constants the biases have no room beside d and `old`: d starts with them.
  __device__ __forceinline__ void set_bias(float (&d)[GB], const WnItem& item, int row0) const {
    const T* bias = p.layer[item.layer].res_skip_bias;
    const int rows = p.residual_rows(item.layer) + p.skip_channels;
#pragma unroll
    for (int j = 0; j < GB / 4; ++j) {
      const int r = row0 + 8 * j + column();
      Pair v;
      arch::unpack2<T>(bias && r < rows ? arch::load_global<uint32_t>(bias + r) : 0, v.lo, v.hi);
      d[4 * j] = d[4 * j + 2] = v.lo;
      d[4 * j + 1] = d[4 * j + 3] = v.hi;
    }
  }

  __device__ __forceinline__ void store_outputs(
      const float (&d)[GB], const uint4 (&old)[2][kGroups], const WnItem& item, int t, int row0) const {
    const int residual = p.residual_rows(item.layer), rows = residual + p.skip_channels;
    const bool last = item.layer + 1 == p.layers;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int step = t + 8 * r * item.stride;
      const bool inside = step < p.time;
      float mask = 1;
      if (p.mask && inside) mask = arch::to_float(arch::load_global<T>(p.mask + item.batch * p.mask_batch + step));
      const float residual_scale = p.res_scale * mask;
      const float skip_scale = last ? p.skip_scale * (p.skip_masked ? mask : 1.0f) : 1.0f;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        uint32_t words[4] = {old[r][g].x, old[r][g].y, old[r][g].z, old[r][g].w};
        transpose_quad(words);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 4 * (4 * g + i) + 2 * r;
          const float scale = row0 + 32 * g + 8 * i < residual ? residual_scale : skip_scale;
          Pair v;
          arch::unpack2<T>(words[i], v.lo, v.hi);
          words[i] = arch::pack2<T>((v.lo + d[at]) * scale, (v.hi + d[at + 1]) * scale);
        }
        transpose_quad(words);
        const int mine = row0 + 32 * g + lane() % 4 * 8;
        if (inside && mine < rows) {
          arch::store_global<uint4>(output_at(item, step, mine), {words[0], words[1], words[2], words[3]});
        }
      }
    }
  }

  __device__ __forceinline__ void consume_all() {
    uint32_t gated_phase = 0;
    for (int index = unit; index < schedule.groups(); index += units) {
      const WnItem item = item_of(index);
      const int t = item.t0 + row() * item.stride;

      for (int i = 0; i < passes; ++i) {
        float d[GB];
        const int channel0 = number_of(i) * GB;
        Pair add[GB / 4];
        load_gate_add(add, item, channel0);
        multiply<false>(d, gate_depth_steps);
        complete_gate(d, add, item, t, channel0);
        if (SPLIT == WnSplit::kRows && i == 0) arch::mbarrier_wait(gated_empty(), gated_phase ^ 1);
        store_gated(d, channel0);
      }
      if constexpr (SPLIT == WnSplit::kRows) {
        arch::fence_proxy_async();  // wgmma reads `a`
        arch::sync_warp();
        if (lane() < CLUSTER) arch::mbarrier_arrive_cluster(gated_full(), lane());
        arch::mbarrier_wait_cluster(gated_full(), gated_phase);
        arch::fence_proxy_async_shared();
      } else {
        arch::fence_proxy_async_shared();
        sync_warpgroup();  // a warpgroup reads the steps that it wrote
      }

      const int blocks = output_blocks(item.layer);
      for (int i = 0; i < blocks; ++i) {
        float d[GB];
        uint4 old[2][kGroups];
        const int row0 = number_of(i) * kRows;
        load_old(old, item, t, row0);
        set_bias(d, item, row0);
        multiply<true>(d, ceil_div(p.gate_channels, kDepth));
        store_outputs(d, old, item, t, row0);
      }
      if constexpr (SPLIT == WnSplit::kRows) have_read(gated_empty());
      gated_phase ^= 1;

      arch::fence_proxy_async();  // the next layer's loads are the copy engine's
      sync_warpgroup();
      if (threadIdx.x % 128 == 0) schedule.publish(item);
    }
  }

  __device__ __forceinline__ void sync_warpgroup() const { arch::named_barrier_sync(1 + warpgroup, 128); }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wn_sm90_kernel(const __grid_constant__ WnSm90Params<typename Tile::type> params) {
#if FASTFLOW_SM90A
  const Tile tile(params);
  if (threadIdx.x == 0) tile.init_barriers();
  if constexpr (Tile::kCluster > 1) {
    arch::cluster_sync();
  } else {
    arch::sync_threads();
  }
  if (threadIdx.x < 128) {
    if constexpr (Tile::kDealRegisters) arch::registers_release<Tile::kLoaderRegisters>();
    if (threadIdx.x < 32) Tile(params).load_all();
  } else {
    if constexpr (Tile::kDealRegisters) arch::registers_acquire<Tile::kConsumerRegisters>();
    Tile(params).consume_all();
  }
  // A block stays until all that others send to its shared memory has come: boxes have been waited for, and arrivals
  // are ordered before the others' part in this barrier.
  if constexpr (Tile::kCluster > 1) arch::cluster_sync();
#endif
}

}  // namespace fastflow
