// The WN block on the matrix units of sm_80 and later (mma.sync), with copies that run ahead (cp.async).
//
// A block of 8 warps makes items (see wn_schedule.cuh): BLOCK_T time steps of one layer, all channels.
//   for each PASS of the gate's channels:  acc[t, 2 * PASS] = sum over kk of x[t, kk] * w[row, kk]
//                                          a[t, PASS]       = gate(acc)       to shared memory, as T
//   for each 2 * PASS output rows:         acc[t, 2 * PASS] = sum over g of a[t, g] * w[row, g]
//                                          residual sum and skips             from registers to memory
// kk runs over taps and channels (k * C), then over the conditioning's channels, in steps of 64 bytes. All steps of an
// item, those of the second product too, go through one ring of stages: while a step is multiplied, the next ones are
// on their way, across the ends of taps, passes and products.
#pragma once

#include <arch/launch.cuh>
#include <type_traits>

#include "../launch.h"
#include "wn_gate.cuh"
#include "wn_schedule.cuh"
#include "wn_sm80_tile.cuh"

namespace fastflow::sm80 {

template <class T, int BLOCK_T, int PASS>
struct Forward {
  static constexpr int kRows = 2 * PASS;
  // Two warps along the steps, four along the rows: a warp's tile is nearly square, which reads least.
  using Tile = WarpTile<T, BLOCK_T, kRows, 2>;
  using Copies = Segment<T, BLOCK_T, kRows>;
  using Stages = Ring<Copies::kStageBytes>;
  // Output rows beside each other that a thread stores at once, up to 16 bytes. A thread holds two columns of each 8;
  // that these are neighbours of those of the next 8 is arranged by the order of the weights' rows in shared memory.
  static constexpr int kUnit = sizeof(T) == 2 && Tile::kRows % 32 == 0 ? 8 : 4;
  static constexpr int kGroup = 4 * kUnit;
  static_assert(kSweep % kGroup == 0 && Tile::kRows % kGroup == 0);

  static __host__ __device__ constexpr int shared_bytes(int gate_channels) {
    return Stages::kBytes + ceil_div(gate_channels, kDepth<T>) * BLOCK_T * kRowBytes;
  }

  // The output row that lies in row `row` of the tile.
  static __device__ __forceinline__ int output_row(int row) {
    const int within = row % kGroup, j = within / 8, q = within % 8 / 2, e = within % 2;
    return row - within + q * kUnit + j * 2 + e;
  }

  const WnParams<T>& p;
  const WnItem item;
  const GateInputs<T> inputs;
  const int rows;        // R + S
  Stages ring;           // of x [BLOCK_T, 64 bytes] and weights [kRows, 64 bytes]
  arch::shared_t gated;  // [ceil(G / kDepth), BLOCK_T, 64 bytes]

  // The place of the copies: in segment `index` of the pass that starts with channel, or output row, `first`. The last
  // segment is the second product's.
  Copies segment;
  int index = 0, first = 0;
  bool more = true;

  __device__ __forceinline__ Forward(const WnParams<T>& p, const WnItem& item)
      : p(p),
        item(item),
        inputs(p, item),
        rows(p.residual_rows(item.layer) + p.skip_channels),
        ring(arch::shared_memory()),
        gated(ring.base + Stages::kBytes) {}

  __device__ __forceinline__ bool copies_gate() const { return index < inputs.segments(); }

  __device__ __forceinline__ void enter() {
    if (copies_gate()) {
      inputs.enter(segment, index, first);
    } else {
      const int row = first + output_row(Copies::row());
      segment.set_w(inputs.layer.res_skip_weight, p.gate_channels, row, rows, kSweep);
      segment.remaining = p.gate_channels;
    }
  }

  // Starts the copies of the next step, if there is one.
  __device__ __forceinline__ void copy(arch::shared_t stage) {
    if (!more) return;
    if (copies_gate()) segment.copy_x(stage, p.phases, p.time);
    segment.copy_w(stage);
    segment.advance();
    if (segment.remaining > 0) return;
    if (!copies_gate()) {
      first += kRows;
      more = first < rows;
    } else if (++index == inputs.segments()) {
      first += PASS;
      if (first < p.gate_channels) {
        index = 0;
      } else {
        first = 0;
      }
    }
    if (more) enter();
  }

  __device__ __forceinline__ void run() {
    const auto copy_step = [this](arch::shared_t stage) { copy(stage); };
    enter();
    ring.fill(copy_step);
    Tile tile;
    for (int g0 = 0; g0 < p.gate_channels; g0 += PASS) {
      const auto x = [](int, arch::shared_t stage) { return stage; };
      tile.clear();
      ring.template multiply<Copies::kXBytes>(tile, inputs.steps(), x, copy_step);
      inputs.add_vectors(tile, g0);
      gate(tile, g0);
    }
    // The barrier of the next step comes between the gated tile's writers and its readers.
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      const auto x = [this](int s, arch::shared_t) { return gated + s * BLOCK_T * kRowBytes; };
      tile.clear();
      ring.template multiply<Copies::kXBytes>(tile, ceil_div(p.gate_channels, kDepth<T>), x, copy_step);
      output(tile, r0);
    }
  }

  __device__ __forceinline__ void gate(const Tile& tile, int g0) const {
    const typename Tile::Place place;
#pragma unroll
    for (int j = 0; j < Tile::kN / 2; ++j) {
      const int g = g0 + place.channel(j);
      // Up to the end of the last step's depth there must be zeros, and the gate of zeros is zero.
      if (g >= ceil_div(p.gate_channels, kDepth<T>) * kDepth<T>) continue;
      const int chunk = g % kDepth<T> / kChunk<T>, within = g % kChunk<T> * static_cast<int>(sizeof(T));
      const arch::shared_t to = gated + g / kDepth<T> * BLOCK_T * kRowBytes + within;
#pragma unroll
      for (int i = 0; i < Tile::kM; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float a[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            a[c] = WnGate<T>(tile.acc[i][2 * j][2 * e + c], tile.acc[i][2 * j + 1][2 * e + c]).value();
          }
          arch::store_shared(to + swizzled(place.step(i, e), chunk), Vector<T, 2>::pack(a).part[0]);
        }
      }
    }
  }

  // The rows from r0 on: r = acc + bias, then residual sum and skips.
  __device__ __forceinline__ void output(const Tile& tile, int r0) const {
    using Unit = Vector<T, kUnit>;
    const typename Tile::Place place;
    const int residual = p.residual_rows(item.layer);
    const bool last = item.layer + 1 == p.layers;
    const bool accumulate = item.layer > 0 || p.skip_accumulate;
    const T* const bias = inputs.layer.res_skip_bias;
    const T* const mask = p.mask ? p.mask + item.batch * p.mask_batch : nullptr;
#pragma unroll
    for (int group = 0; group < Tile::kRows / kGroup; ++group) {
      const int r = r0 + place.row0 + group * kGroup + place.quad * kUnit;
      // R and S are multiples of 8: a unit is residual, or skip, or past the end, as a whole.
      if (r >= rows) continue;
      const bool is_residual = r < residual;
      const bool reads = is_residual || accumulate, masked = mask && (is_residual || (last && p.skip_masked));
      const float factor = is_residual ? p.res_scale : last ? p.skip_scale : 1.0f;
      const int64_t to_step = is_residual ? p.channels : p.skip_channels;
      T* const to = (is_residual ? p.states[item.layer % 2] + r : p.skip + (r - residual)) +
                    int64_t(item.batch) * p.time * to_step;
      const T* const from = is_residual ? inputs.h + r : to;
      const int64_t from_step = is_residual ? inputs.h_step : to_step;
      float biases[kUnit] = {};
      if (bias) Unit::load(bias + r).unpack(biases);

      // Loads come some at a time before the stores, which the compiler must not move them over; all of them at once
      // would not fit into the registers of the largest tile.
      constexpr int batch = Tile::kM < 2 ? Tile::kM : 2;
#pragma unroll
      for (int i0 = 0; i0 < Tile::kM; i0 += batch) {
        Unit before[batch][2];
        float scale[batch][2];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int t = inputs.time_of(place.step(i0 + i, e));
            if (t >= p.time) continue;
            if (reads) before[i][e] = Unit::load(from + t * from_step);
            scale[i][e] = masked ? factor * arch::widen(arch::load_global<T>(mask + t)) : factor;
          }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int t = inputs.time_of(place.step(i0 + i, e));
            if (t >= p.time) continue;
            float value[kUnit] = {};
            if (reads) before[i][e].unpack(value);
#pragma unroll
            for (int c = 0; c < kUnit; ++c) {
              const float product = tile.acc[i0 + i][group * (kGroup / 8) + c / 2][2 * e + c % 2];
              value[c] = (value[c] + (product + biases[c])) * scale[i][e];
            }
            Unit::pack(value).store(to + t * to_step);
          }
        }
      }
    }
  }
};

// One block to a multiprocessor may take all its registers: 128 of a thread's 255 are accumulators in the largest tile.
template <class T, int BLOCK_T, int PASS>
__global__ void __launch_bounds__(kThreads, 1) wn_kernel(const __grid_constant__ WnParams<T> p) {
#if FASTFLOW_SM80
  const WnSchedule<T, BLOCK_T> schedule(p);
  for (int index = static_cast<int>(blockIdx.x); index < schedule.groups(); index += static_cast<int>(gridDim.x)) {
    const WnItem item = schedule.item(index);
    if (threadIdx.x < 32) schedule.wait(item, 1);
    arch::sync_threads();  // also: all have left the item before
    Forward<T, BLOCK_T, PASS>(p, item).run();
    arch::sync_threads();
    if (threadIdx.x == 0) schedule.publish(item);
  }
#endif
}

template <int V>
using int_t = std::integral_constant<int, V>;

// Calls f with the gate channels of a pass: of the numbers that leave the fewest columns idle the largest, which reads
// the activations least often. 96 is for multiples of 192 (VITS and its kin).
template <class F>
void with_pass(int gate_channels, const F& f) {
  const auto padded = [&](int pass) { return ceil_div(gate_channels, pass) * pass; };
  const int least = padded(64) < padded(96) ? padded(64) : padded(96);
  if (padded(128) <= least) return f(int_t<128>());
  if (padded(96) <= least) return f(int_t<96>());
  f(int_t<64>());
}

// Which of some lengths of tiles takes the least time: long ones read the weights less often, short ones give all
// multiprocessors something to do, and a layer takes at least as long as one item. An item takes about as long as its
// steps and 16 more.
class TileChoice {
 public:
  TileChoice(const arch::Device& device, int layers) : multiprocessors_(device.multiprocessors), layers_(layers) {}

  void consider(int block_t, int64_t items) {
    const int64_t rounds = (items + multiprocessors_ - 1) / multiprocessors_;
    const int64_t cost = (rounds < layers_ ? layers_ : rounds) * (block_t + 16);
    if (best_ != 0 && cost >= best_cost_) return;
    best_ = block_t;
    best_cost_ = cost;
  }
  int best() const { return best_; }  // 0: none was considered

 private:
  int64_t multiprocessors_, layers_, best_cost_ = 0;
  int best_ = 0;
};

}  // namespace fastflow::sm80

namespace fastflow {

template <class T>
void launch_wn_sm80(const WnParams<T>& p, const arch::Device& device, arch::Stream stream) {
  using sm80::int_t;
  sm80::with_pass(p.gate_channels, [&](auto pass) {
    const auto each_tile = [](const auto& f) {
      // float32's gated tile takes twice the room: with 128 steps it would fit into few GPUs, for few channels
      if constexpr (sizeof(T) == 2) f(int_t<128>());
      f(int_t<64>());
      f(int_t<32>());
    };
    sm80::TileChoice choice(device, p.layers);
    each_tile([&](auto block_t) {
      const int bytes = sm80::Forward<T, block_t.value, pass.value>::shared_bytes(p.gate_channels);
      if (bytes <= device.shared_per_block) choice.consider(block_t.value, WnSchedule<T, block_t.value>(p).groups());
    });
    // more gate channels than fit into shared memory with 32 steps
    if (choice.best() == 0) return launch_wn_portable(p, device, stream);
    each_tile([&](auto block_t) {
      if (block_t.value != choice.best()) return;
      const auto kernel = sm80::wn_kernel<T, block_t.value, pass.value>;
      const WnSchedule<T, block_t.value> schedule(p);
      const int bytes = sm80::Forward<T, block_t.value, pass.value>::shared_bytes(p.gate_channels);
      arch::Launch how{{1, 1, 1}, sm80::kThreads, bytes};
      const int resident = arch::resident_clusters(kernel, how);
      how.grid.x = static_cast<unsigned>(schedule.groups() < resident ? schedule.groups() : resident);
      if (p.layers > 1) arch::zero_async(p.done, sizeof(uint32_t) * int64_t(p.layers) * schedule.per_layer(), stream);
      how.cooperative = p.layers > 1;
      arch::launch(kernel, p, how, stream);
    });
  });
}

}  // namespace fastflow
