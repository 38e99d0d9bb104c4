// What lies between the gated stack of one flow and the next, in one launch: end convolution, coupling, 1x1
// convolution, early outputs.
//
// Nearly all of its bytes are `hidden` (S channels for C of x), so a block of 8 warps reads its 32 steps of it as they
// lie in memory:
//   channels side by side: a warp takes 4 steps, its lanes 16 bytes of a step each; a lane multiplies what it has by
//   its
//     columns of all rows of the end weight, and one exchange of registers for two sums gives each lane one sum;
//   steps side by side: a lane takes a step, a warp every eighth channel; the warps' sums meet in shared memory.
// Then each warp transforms channels of x, and each warp makes rows of the product.
#pragma once

#include "../launch.h"
#include "affine_coupling.cuh"
#include "lane_tile.cuh"

namespace fastflow {

template <class X, class H, int ROWS>
struct FlowStep {
  using acc_t = accumulator_t<X>;
  static constexpr int kThreads = 256, kWarps = kThreads / 32, kSteps = kFlowStepTile;
  // To a multiprocessor at least: two leave 128 registers to a thread, too few for float64 and for 32 rows.
  static constexpr int kBlocks = sizeof(acc_t) == 8 || ROWS == 32 ? 1 : 2;
  static constexpr int kMax = FlowStepParams<X, H>::kMaxChannels;
  static constexpr int kHeld = (2 * ROWS < kMax ? 2 * ROWS : kMax) / kWarps;  // channels of x that a thread reads
  static constexpr int kWarpSteps = kSteps / kWarps;
  static constexpr int kAtOnce = 32 / ROWS < kWarpSteps ? 32 / ROWS : kWarpSteps;  // steps: as many sums as lanes
  static_assert(kAtOnce * ROWS == 32);

  static constexpr int kVector = 16 / sizeof(H);
  struct alignas(16) Vector {
    H v[kVector];
  };
  static constexpr int kGroup = 32 * kVector;  // channels of hidden that a warp reads at once
  // The end weight passes through shared memory in pieces of 16 KiB: S = 256 is one piece for 8 rows.
  static constexpr int kPiece = 32 / ROWS * kGroup;

  // Shared memory, in bytes.
  static constexpr int kSize = sizeof(acc_t);
  static constexpr int kWeights = 0;  // end weight: [ROWS, kPiece] of H
  static constexpr int kOut = kWeights + ROWS * kPiece * static_cast<int>(sizeof(H));  // its result: [ROWS, 32]
  static constexpr int kProduct = kOut + ROWS * kSteps * kSize;      // 1x1 weight: at most [kMax, kMax]
  static constexpr int kZ = kProduct + kMax * kMax * kSize;          // [kMax, 32]
  static constexpr int kMeet = kZ + kMax * kSteps * kSize;           // [kWarps, 8, 32]
  static constexpr int kLogs = kMeet + kWarps * 8 * kSteps * kSize;  // [kWarps] of double
  static constexpr int kBytes = kLogs + kWarps * 8;

  const FlowStepParams<X, H>& p;
  arch::shared_t shared;
  int lane, warp, end_rows;

  __device__ __forceinline__ explicit FlowStep(const FlowStepParams<X, H>& p)
      : p(p),
        shared(arch::shared_memory()),
        lane(static_cast<int>(threadIdx.x % 32)),
        warp(static_cast<int>(threadIdx.x / 32)),
        end_rows(p.form == CouplingForm::kAdditive ? p.channels / 2 : p.channels) {}

  __device__ __forceinline__ acc_t load(int at) const { return arch::load_shared<acc_t>(shared + at); }
  __device__ __forceinline__ void store(int at, acc_t v) const { arch::store_shared<acc_t>(shared + at, v); }
  static __device__ __forceinline__ int out(int row, int step) { return kOut + (row * kSteps + step) * kSize; }
  static __device__ __forceinline__ int z(int channel, int step) { return kZ + (channel * kSteps + step) * kSize; }

  static __device__ __forceinline__ acc_t widen(H v) { return static_cast<acc_t>(arch::widen(v)); }

  // The first sum of a result starts from the bias, later ones add to it.
  __device__ __forceinline__ void add(int row, int step, acc_t sum, bool first) const {
    if (row >= end_rows) return;
    acc_t before = 0;
    if (!first) {
      before = load(out(row, step));
    } else if (p.end_bias) {
      before = widen(arch::load_global<H>(p.end_bias + row));
    }
    store(out(row, step), before + sum);
  }

  // Channels [s0, s0 + kPiece) of the end weight, zero beyond what there is.
  __device__ __forceinline__ void fill_weights(int s0) const {
    for (int at = static_cast<int>(threadIdx.x); at < ROWS * kPiece; at += kThreads) {
      const int row = at / kPiece, s = s0 + at % kPiece;
      H v = arch::narrow<H>(0);
      if (row < end_rows && s < p.hidden_channels) {
        v = arch::load_global<H>(p.end_weight + static_cast<int64_t>(row) * p.hidden_channels + s);
      }
      arch::store_shared<H>(shared + kWeights + at * static_cast<int>(sizeof(H)), v);
    }
  }

  // hidden: the tile's first step. The sums over the piece's channels go to `out`.
  template <bool VECTORS>
  __device__ __forceinline__ void along_channels(const H* hidden, int steps, int s0) const {
#pragma unroll 1
    for (int pass = 0; pass < kWarpSteps; pass += kAtOnce) {
      const int first_step = warp * kWarpSteps + pass;
      acc_t sums[32] = {};
#pragma unroll 1
      for (int group = 0; group < kPiece && s0 + group < p.hidden_channels; group += kGroup) {
        acc_t h[kAtOnce][kVector];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const H* row = hidden + (first_step + i) * p.hidden_step;
          if constexpr (VECTORS) {
            const int s = s0 + group + lane * kVector;
            Vector vector = {};
            if (first_step + i < steps && s < p.hidden_channels) vector = arch::load_global<Vector>(row + s);
#pragma unroll
            for (int e = 0; e < kVector; ++e) h[i][e] = widen(vector.v[e]);
          } else {
#pragma unroll
            for (int e = 0; e < kVector; ++e) {
              const int s = s0 + group + e * 32 + lane;
              const bool inside = first_step + i < steps && s < p.hidden_channels;
              h[i][e] = inside ? widen(arch::load_global<H>(row + s * p.hidden_channel)) : acc_t(0);
            }
          }
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          const arch::shared_t weights = shared + kWeights + (row * kPiece + group) * static_cast<int>(sizeof(H));
          acc_t w[kVector];
          if constexpr (VECTORS) {
            const Vector vector = arch::load_shared<Vector>(weights + lane * 16);
#pragma unroll
            for (int e = 0; e < kVector; ++e) w[e] = widen(vector.v[e]);
          } else {
#pragma unroll
            for (int e = 0; e < kVector; ++e) {
              w[e] = widen(arch::load_shared<H>(weights + (e * 32 + lane) * static_cast<int>(sizeof(H))));
            }
          }
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
            for (int e = 0; e < kVector; ++e) sums[i * ROWS + row] += h[i][e] * w[e];
          }
        }
      }
      warp_sums<32>(sums);
      add(lane % ROWS, first_step + lane / ROWS, sums[0], s0 == 0);
    }
  }

  __device__ __forceinline__ void along_steps(const H* hidden, int steps, int s0) const {
    acc_t sums[ROWS] = {};
    const int end = p.hidden_channels - s0 < kPiece ? p.hidden_channels - s0 : kPiece;
    if (lane < steps) {
#pragma unroll 4
      for (int s = warp; s < end; s += kWarps) {
        const acc_t h = widen(arch::load_global<H>(hidden + (s0 + s) * p.hidden_channel + lane * p.hidden_step));
        const arch::shared_t weights = shared + kWeights + s * static_cast<int>(sizeof(H));
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          sums[row] += h * widen(arch::load_shared<H>(weights + row * kPiece * static_cast<int>(sizeof(H))));
        }
      }
    }
#pragma unroll
    for (int row0 = 0; row0 < ROWS; row0 += 8) {
      if (row0 > 0) arch::sync_threads();
#pragma unroll
      for (int i = 0; i < 8; ++i) store(kMeet + ((warp * 8 + i) * kSteps + lane) * kSize, sums[row0 + i]);
      arch::sync_threads();
      acc_t sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += load(kMeet + ((w * 8 + warp) * kSteps + lane) * kSize);
      add(row0 + warp, lane, sum, s0 == 0);
    }
  }

  __device__ __forceinline__ void run() const {
    const int half = p.channels / 2, multiplied = p.channels - p.n_early;
    const int64_t tiles = (p.time + kSteps - 1) / kSteps, rows_of_y = p.early_channels + p.channels;
    const bool vectors = p.hidden_channel == 1 && p.hidden_channels % kVector == 0 && p.hidden_step % kVector == 0 &&
                         p.hidden_batch % kVector == 0 && reinterpret_cast<uintptr_t>(p.hidden) % 16 == 0;
    const bool one_piece = p.hidden_channels <= kPiece;
    if (one_piece) fill_weights(0);
    if (p.weight) {
      for (int at = static_cast<int>(threadIdx.x); at < multiplied * multiplied; at += kThreads) {
        store(kProduct + at * kSize, arch::widen(arch::load_global<X>(p.weight + at)));
      }
    }
    arch::sync_threads();
    for (int64_t tile = blockIdx.x; tile < p.batch * tiles; tile += gridDim.x) {
      const int64_t b = tile / tiles, t0 = tile % tiles * kSteps;
      const int steps = static_cast<int>(p.time - t0 < kSteps ? p.time - t0 : kSteps);
      const bool valid = lane < steps;

      // x is on its way while hidden is multiplied
      acc_t xs[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int c = warp + i * kWarps;
        const bool inside = valid && c < p.channels;
        xs[i] = inside ? arch::widen(arch::load_global<X>(p.x + b * p.x_batch + c * p.time + t0 + lane)) : acc_t(0);
      }

      const H* hidden = p.hidden + b * p.hidden_batch + t0 * p.hidden_step;
      for (int s0 = 0; s0 == 0 || s0 < p.hidden_channels; s0 += kPiece) {
        if (!one_piece) {
          arch::sync_threads();
          fill_weights(s0);
          arch::sync_threads();
        }
        if (vectors) {
          along_channels<true>(hidden, steps, s0);
        } else if (p.hidden_channel == 1) {
          along_channels<false>(hidden, steps, s0);
        } else {
          along_steps(hidden, steps, s0);
        }
      }
      arch::sync_threads();

      acc_t log_scales = 0;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int c = warp + i * kWarps;
        if (c >= p.channels) continue;
        const bool second = c >= half;
        acc_t v = xs[i];
        if (second != p.transform_first) {
          const int j = second ? c - half : c;
          const acc_t raw = p.form == CouplingForm::kAdditive ? acc_t(0) : load(out(half + j, lane));
          const Coupling<acc_t> coupling(p.form, p.reverse, raw);
          v = coupling.value(p.form, p.reverse, v, load(out(j, lane)));
          if (valid) log_scales += coupling.log_scale;
        }
        store(z(c, lane), v);
      }
      if (p.parts) {
        const double sum = arch::warp_sum(static_cast<double>(log_scales));
        if (lane == 0) arch::store_shared<double>(shared + kLogs + warp * 8, sum);
      }
      arch::sync_threads();

      X* y = p.y + b * rows_of_y * p.time + t0 + lane;  // [E + C, T]
      for (int e = warp; e < p.early_channels; e += kWarps) {
        if (!valid) continue;
        const X* early = p.early + b * p.early_batch + e * p.time + t0 + lane;
        arch::store_global<X>(y + e * p.time, arch::load_global<X>(early));
      }
      for (int c = warp; c < p.channels; c += kWarps) {
        acc_t v = 0;
        const int row = c - p.n_early;
        if (!p.weight || row < 0) {
          v = load(z(c, lane));
        } else {
          for (int j = 0; j < multiplied; ++j) {
            v += load(kProduct + (row * multiplied + j) * kSize) * load(z(p.n_early + j, lane));
          }
        }
        if (valid) arch::store_global<X>(y + (p.early_channels + c) * p.time, arch::narrow<X>(v));
      }
      if (p.parts && threadIdx.x == 0) {
        double sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += arch::load_shared<double>(shared + kLogs + w * 8);
        arch::store_global<double>(p.parts + tile, p.reverse ? -sum : sum);
      }
    }
  }
};

template <class X, class H, int ROWS>
__global__ void __launch_bounds__(FlowStep<X, H, ROWS>::kThreads, FlowStep<X, H, ROWS>::kBlocks)
    flow_step_kernel(const FlowStepParams<X, H> p) {
  FlowStep<X, H, ROWS>(p).run();
}

inline int64_t flow_step_tiles(int64_t time) { return (time + kFlowStepTile - 1) / kFlowStepTile; }

template <class X, class H, int ROWS>
void launch_flow_step_rows(const FlowStepParams<X, H>& p, const arch::Device& device, arch::Stream stream) {
  using Step = FlowStep<X, H, ROWS>;
  const int64_t tiles = p.batch * flow_step_tiles(p.time);
  const int64_t most =
      8 * static_cast<int64_t>(device.multiprocessors);  // about what is resident: weights are read once
  const arch::Launch how = {grid_of(tiles < most ? tiles : most, 1), Step::kThreads, Step::kBytes};
  arch::launch(flow_step_kernel<X, H, ROWS>, p, how, stream);
}

template <class X, class H>
void launch_flow_step(
    const FlowStepParams<X, H>& p, accumulator_t<X>* log_det, const arch::Device& device, arch::Stream stream) {
  const int32_t rows = p.form == CouplingForm::kAdditive ? p.channels / 2 : p.channels;
  if (rows <= 8) {
    launch_flow_step_rows<X, H, 8>(p, device, stream);
  } else if (rows <= 16) {
    launch_flow_step_rows<X, H, 16>(p, device, stream);
  } else {
    launch_flow_step_rows<X, H, 32>(p, device, stream);
  }
  if (!p.parts) return;
  launch_sum_parts(SumPartsParams<accumulator_t<X>>{p.parts, log_det, p.batch, flow_step_tiles(p.time)}, stream);
}

}  // namespace fastflow
