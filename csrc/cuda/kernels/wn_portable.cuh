// The WN block in plain multiply-adds: for float32 in full precision, float64, GPUs before sm_80, and channel counts
// that the matrix units' kernels do not take.
//
// A block of 256 threads makes a tile of BLOCK_T time steps, all channels:
//   for each 64 gate channels:  acc[t, 128] = sum over kk of x[t, kk] * w[row, kk]     rows: 64 of tanh, their 64
//   sigmoids
//                               a[t, 64]    = gate(acc)                               kept in shared memory, as T
//   for each 128 output rows:   acc[t, 128] = sum over g of a[t, g] * w[row, g]       then residual sum and skips
// kk runs over taps and channels (k * C), then over the conditioning's channels; a tile's steps are of one phase, if
// there are several. A thread holds BLOCK_T / 16 steps by 8 rows. Tiles of x and w pass through two buffers in shared
// memory, 16 of kk at a time: while one is multiplied, the next is on its way from memory into registers.
#pragma once

#include <arch/barrier.cuh>
#include <arch/launch.cuh>
#include <arch/memory.cuh>
#include <arch/platform.cuh>
#include <stdexcept>

#include "../../params.h"
#include "wn_gate.cuh"
#include "wn_schedule.cuh"

namespace fastflow {

template <class T, int BLOCK_T>
struct WnPortable {
  using acc_t = accumulator_t<T>;

  static constexpr int kThreads = 256;
  static constexpr int kSteps = BLOCK_T / 16;  // of one thread
  static constexpr int kGate = 64;             // gate channels of one pass
  static constexpr int kRows = 2 * kGate;
  static constexpr int kDepth = 16;  // kk of one stage
  // A row of a stage is padded by 16 bytes: its writers go down a column.
  static constexpr int kPad = 16 / sizeof(acc_t);
  static constexpr int kXRow = BLOCK_T + kPad, kWRow = kRows + kPad;
  static constexpr int kStage = kDepth * (kXRow + kWRow);  // elements
  static constexpr int kXLoads = kDepth * BLOCK_T / kThreads, kWLoads = kDepth * kRows / kThreads;

  static int shared_bytes(int gate_channels) {
    return 2 * kStage * static_cast<int>(sizeof(acc_t)) + gate_channels * BLOCK_T * static_cast<int>(sizeof(T));
  }

  // N elements in a row, read with the widest accesses there are.
  template <class V, int N>
  static __device__ __forceinline__ void load_row(arch::shared_t address, V (&to)[N]) {
    constexpr int unit = N * sizeof(V) > 16 ? 16 / sizeof(V) : N;
    struct alignas(unit * sizeof(V)) Unit {
      V v[unit];
    };
#pragma unroll
    for (int i = 0; i < N; i += unit) {
      const Unit u = arch::load_shared<Unit>(address + i * static_cast<int>(sizeof(V)));
#pragma unroll
      for (int j = 0; j < unit; ++j) to[i + j] = u.v[j];
    }
  }

  int thread_t, thread_row;  // 0 to 15 each
  arch::shared_t stages, gated;
  int buffer = 0;  // the stage to be written next

  __device__ __forceinline__ WnPortable()
      : thread_t(static_cast<int>(threadIdx.x) / 16),
        thread_row(static_cast<int>(threadIdx.x) % 16),
        stages(arch::shared_memory()),
        gated(stages + 2 * kStage * static_cast<int>(sizeof(acc_t))) {}

  // Steps and rows of this thread's accumulators; columns 0 to 3 are of the first 64 rows, 4 to 7 of the others.
  __device__ __forceinline__ int step(int i) const { return thread_t * kSteps + i; }
  __device__ __forceinline__ int row(int j) const { return (j / 4) * kGate + thread_row * 4 + j % 4; }

  // acc[i][j] += sum over kk < depth of x(t, kk) * w(row, kk). `x` and `w` return acc_t, and 0 outside; neighbouring
  // threads ask for neighbouring kk.
  template <class X, class W>
  __device__ __forceinline__ void multiply(acc_t (&acc)[kSteps][8], int depth, const X& x, const W& w) {
    acc_t next_x[kXLoads], next_w[kWLoads];
    const int lane_k = static_cast<int>(threadIdx.x) % kDepth, lane_row = static_cast<int>(threadIdx.x) / kDepth;
    const auto fetch = [&](int k0) {
#pragma unroll
      for (int i = 0; i < kXLoads; ++i) next_x[i] = x(lane_row + i * (kThreads / kDepth), k0 + lane_k);
#pragma unroll
      for (int i = 0; i < kWLoads; ++i) next_w[i] = w(lane_row + i * (kThreads / kDepth), k0 + lane_k);
    };
    fetch(0);
    for (int k0 = 0; k0 < depth; k0 += kDepth, buffer ^= 1) {
      const arch::shared_t tile_x = stages + buffer * kStage * static_cast<int>(sizeof(acc_t));
      const arch::shared_t tile_w = tile_x + kDepth * kXRow * static_cast<int>(sizeof(acc_t));
#pragma unroll
      for (int i = 0; i < kXLoads; ++i) {
        const int at = lane_k * kXRow + lane_row + i * (kThreads / kDepth);
        arch::store_shared<acc_t>(tile_x + at * static_cast<int>(sizeof(acc_t)), next_x[i]);
      }
#pragma unroll
      for (int i = 0; i < kWLoads; ++i) {
        const int at = lane_k * kWRow + lane_row + i * (kThreads / kDepth);
        arch::store_shared<acc_t>(tile_w + at * static_cast<int>(sizeof(acc_t)), next_w[i]);
      }
      // One barrier a stage: who passes it has finished with the other buffer, which is written next, be it by the
      // next product.
      arch::sync_threads();
      if (k0 + kDepth < depth) fetch(k0 + kDepth);
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
        acc_t xs[kSteps], ws[8];
        load_row(tile_x + (k * kXRow + step(0)) * static_cast<int>(sizeof(acc_t)), xs);
        acc_t(&low)[4] = reinterpret_cast<acc_t(&)[4]>(ws[0]);
        acc_t(&high)[4] = reinterpret_cast<acc_t(&)[4]>(ws[4]);
        load_row(tile_w + (k * kWRow + row(0)) * static_cast<int>(sizeof(acc_t)), low);
        load_row(tile_w + (k * kWRow + row(4)) * static_cast<int>(sizeof(acc_t)), high);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
#pragma unroll
          for (int j = 0; j < 8; ++j) acc[i][j] += xs[i] * ws[j];
        }
      }
    }
  }

  static __device__ __forceinline__ void clear(acc_t (&acc)[kSteps][8]) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) acc[i][j] = 0;
    }
  }

  static __device__ __forceinline__ acc_t load(const T* at) { return arch::widen(arch::load_global<T>(at)); }

  // Inputs of the gate for the channels from g0 on: acc[i][j < 4] of tanh, acc[i][j + 4] of its sigmoid.
  __device__ __forceinline__ void gate_inputs(
      acc_t (&acc)[kSteps][8], const WnParams<T>& p, const WnItem& item, const T* h, int64_t h_batch, int64_t h_step,
      int g0) {
    const WnLayerArrays<T>& layer = p.layer[item.layer];
    const int conv_depth = p.kernel_size * p.channels;
    const int depth = conv_depth + (p.cond == WnCond::kLocal ? p.cond_channels : 0);
    const T* h_item = h + item.batch * h_batch;
    const T* cond = layer.cond ? layer.cond + item.batch * p.cond_batch : nullptr;
    const auto x = [&](int t_local, int kk) -> acc_t {
      const int t = item.t0 + t_local * item.stride;
      if (kk >= depth || t >= p.time) return 0;
      if (kk >= conv_depth) return load(cond + (item.frame0 + t_local) * p.cond_step + (kk - conv_depth));
      const int tap = kk / p.channels, source = t + tap * layer.dilation - layer.left_padding;
      if (source < 0 || source >= p.time) return 0;
      return load(h_item + source * h_step + (kk - tap * p.channels));
    };
    const auto w = [&](int r, int kk) -> acc_t {
      const int g = g0 + r % kGate;
      if (g >= p.gate_channels || kk >= depth) return 0;
      const int64_t weight_row = g + (r < kGate ? 0 : p.gate_channels);
      if (kk >= conv_depth) {
        const int64_t cond_row = item.phase * int64_t(2) * p.gate_channels + weight_row;
        return load(layer.cond_weight + cond_row * p.cond_channels + (kk - conv_depth));
      }
      return load(layer.conv_weight + weight_row * conv_depth + kk);
    };
    clear(acc);
    multiply(acc, depth, x, w);

    const int64_t rows = 2 * p.gate_channels;
    const acc_t* add = p.gate_add_of(item.layer, item.batch, item.phase);
    const acc_t* taps =
        p.tap_add ? p.tap_add + (item.layer * int64_t(p.tap_batch) + item.batch % p.tap_batch) * p.kernel_size * rows
                  : nullptr;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int g = g0 + row(j) % kGate;
      if (g >= p.gate_channels) continue;
      const int channel = g + (j < 4 ? 0 : p.gate_channels);
      const acc_t constant = arch::load_global<acc_t>(add + channel);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int t = item.t0 + step(i) * item.stride;
        if (t >= p.time) continue;
        acc[i][j] += constant;
        if (p.cond == WnCond::kProjected) acc[i][j] += load(cond + t * p.cond_step + channel);
        if (taps) {
          for (int tap = 0; tap < p.kernel_size; ++tap) {
            const int source = t + tap * layer.dilation - layer.left_padding;
            if (source >= 0 && source < p.time) acc[i][j] += arch::load_global<acc_t>(taps + tap * rows + channel);
          }
        }
      }
    }
  }

  __device__ __forceinline__ arch::shared_t gated_at(int g, int t) const {
    return gated + (g * BLOCK_T + t) * static_cast<int>(sizeof(T));
  }

  // The second product, residual and skips, from the gated tile.
  __device__ __forceinline__ void outputs(
      const WnParams<T>& p, const WnItem& item, const T* h, int64_t h_batch, int64_t h_step) {
    const WnLayerArrays<T>& layer = p.layer[item.layer];
    const bool last = item.layer + 1 == p.layers;
    const int residual = p.residual_rows(item.layer), rows = residual + p.skip_channels;
    T* h_out = p.states[item.layer % 2];
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      const auto x = [&](int t_local, int g) -> acc_t {
        return g < p.gate_channels ? arch::widen(arch::load_shared<T>(gated_at(g, t_local))) : acc_t(0);
      };
      const auto w = [&](int r, int g) -> acc_t {
        if (r0 + r >= rows || g >= p.gate_channels) return 0;
        return load(layer.res_skip_weight + int64_t(r0 + r) * p.gate_channels + g);
      };
      acc_t acc[kSteps][8];
      clear(acc);
      multiply(acc, p.gate_channels, x, w);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int r = r0 + row(j);
        if (r >= rows) continue;
        const acc_t bias = layer.res_skip_bias ? load(layer.res_skip_bias + r) : acc_t(0);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const int t = item.t0 + step(i) * item.stride;
          if (t >= p.time) continue;
          const acc_t kept = p.mask ? load(p.mask + item.batch * p.mask_batch + t) : acc_t(1);
          const int64_t at = int64_t(item.batch) * p.time + t;
          acc_t value = acc[i][j] + bias;
          if (r < residual) {
            value = (value + load(h + item.batch * h_batch + t * h_step + r)) * p.res_scale * kept;
            arch::store_global<T>(h_out + at * p.channels + r, arch::narrow<T>(value));
          } else {
            T* skip = p.skip + at * p.skip_channels + (r - residual);
            if (item.layer > 0 || p.skip_accumulate) value += load(skip);
            if (last) value *= p.skip_scale * (p.skip_masked ? kept : acc_t(1));
            arch::store_global<T>(skip, arch::narrow<T>(value));
          }
        }
      }
    }
  }
};

template <class T, int BLOCK_T>
__global__ void __launch_bounds__(256, 1) wn_portable_kernel(const WnParams<T> p) {
  using acc_t = accumulator_t<T>;
  using Tile = WnPortable<T, BLOCK_T>;
  Tile tile;
  const WnSchedule<T, BLOCK_T> schedule(p);
  for (int index = static_cast<int>(blockIdx.x); index < schedule.groups(); index += static_cast<int>(gridDim.x)) {
    const WnItem item = schedule.item(index);
    if (threadIdx.x < 32) schedule.wait(item, 1);
    arch::sync_threads();
    const T* h = item.layer == 0 ? p.h : p.states[(item.layer - 1) % 2];
    const int64_t h_step = item.layer == 0 ? p.h_step : p.channels;
    const int64_t h_batch = item.layer == 0 ? p.h_batch : int64_t(p.time) * p.channels;
    for (int g0 = 0; g0 < p.gate_channels; g0 += Tile::kGate) {
      acc_t u[Tile::kSteps][8];
      tile.gate_inputs(u, p, item, h, h_batch, h_step, g0);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int g = g0 + tile.row(j);
        if (g >= p.gate_channels) continue;
#pragma unroll
        for (int i = 0; i < Tile::kSteps; ++i) {
          const acc_t a = WnGate<T>(u[i][j], u[i][j + 4]).value();
          arch::store_shared<T>(tile.gated_at(g, tile.step(i)), arch::narrow<T>(a));
        }
      }
    }
    arch::sync_threads();  // all of the gated tile is there
    tile.outputs(p, item, h, h_batch, h_step);
    arch::sync_threads();
    if (threadIdx.x == 0) schedule.publish(item);
  }
}

template <class T, int BLOCK_T>
__global__ void __launch_bounds__(256, 1) wn_gate_backward_portable_kernel(const WnGateBackwardParams<T> p) {
  using acc_t = accumulator_t<T>;
  using Tile = WnPortable<T, BLOCK_T>;
  Tile tile;
  const WnParams<T>& f = p.forward;
  const WnSchedule<T, BLOCK_T> schedule(f);
  const int rows = f.residual_rows(0) + f.skip_channels;
  for (int index = static_cast<int>(blockIdx.x); index < schedule.groups(); index += static_cast<int>(gridDim.x)) {
    const WnItem item = schedule.item(index);
    for (int g0 = 0; g0 < f.gate_channels; g0 += Tile::kGate) {
      acc_t u[Tile::kSteps][8], grad_a[Tile::kSteps][8];
      tile.gate_inputs(u, f, item, f.h, f.h_batch, f.h_step, g0);
      // The gradients of the same channels, in the first four columns.
      const auto x = [&](int t_local, int r) -> acc_t {
        const int t = item.t0 + t_local;
        if (r >= rows || t >= f.time) return 0;
        return Tile::load(p.grad_r + (int64_t(item.batch) * f.time + t) * rows + r);
      };
      const auto w = [&](int column, int r) -> acc_t {
        const int g = g0 + column;
        if (column >= Tile::kGate || g >= f.gate_channels || r >= rows) return 0;
        return Tile::load(f.layer[0].res_skip_weight + int64_t(r) * f.gate_channels + g);
      };
      Tile::clear(grad_a);
      tile.multiply(grad_a, rows, x, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int g = g0 + tile.row(j);
        if (g >= f.gate_channels) continue;
#pragma unroll
        for (int i = 0; i < Tile::kSteps; ++i) {
          const int t = item.t0 + tile.step(i);
          if (t >= f.time) continue;
          const WnGate<T> gate(u[i][j], u[i][j + 4]);
          const int64_t at = int64_t(item.batch) * f.time + t;
          T* grad_u = p.grad_u + at * 2 * f.gate_channels + g;
          arch::store_global<T>(p.a + at * f.gate_channels + g, arch::narrow<T>(gate.value()));
          arch::store_global<T>(grad_u, arch::narrow<T>(gate.grad_u(grad_a[i][j])));
          arch::store_global<T>(grad_u + f.gate_channels, arch::narrow<T>(gate.grad_v(grad_a[i][j])));
        }
      }
    }
  }
}

// Calls f(BLOCK_T) with tiles of 64 steps where their shared memory allows, else of 16. 64 by 128 accumulators are what
// the registers of 256 threads hold beside the next stage; 16 steps of 512 channels fit into the 64 KB of sm_75.
template <class T, class F>
void with_portable_tile(int gate_channels, const arch::Device& device, const F& f) {
  if (WnPortable<T, 64>::shared_bytes(gate_channels) <= device.shared_per_block) {
    f(std::integral_constant<int, 64>());
  } else if (WnPortable<T, 16>::shared_bytes(gate_channels) <= device.shared_per_block) {
    f(std::integral_constant<int, 16>());
  } else {
    throw std::runtime_error("16 steps of the gate's channels do not fit into this GPU's shared memory");
  }
}

template <class T>
void launch_wn_portable(const WnParams<T>& p, const arch::Device& device, arch::Stream stream) {
  with_portable_tile<T>(p.gate_channels, device, [&](auto block_t) {
    using Tile = WnPortable<T, block_t.value>;
    const WnSchedule<T, block_t.value> schedule(p);
    arch::Launch config{{1, 1, 1}, Tile::kThreads, Tile::shared_bytes(p.gate_channels)};
    const int resident = arch::resident_clusters(wn_portable_kernel<T, block_t.value>, config);
    config.grid.x = static_cast<unsigned>(schedule.groups() < resident ? schedule.groups() : resident);
    if (p.layers > 1) arch::zero_async(p.done, sizeof(uint32_t) * int64_t(p.layers) * schedule.per_layer(), stream);
    config.cooperative = p.layers > 1;
    arch::launch(wn_portable_kernel<T, block_t.value>, p, config, stream);
  });
}

template <class T>
void launch_wn_gate_backward_portable(
    const WnGateBackwardParams<T>& p, const arch::Device& device, arch::Stream stream) {
  with_portable_tile<T>(0, device, [&](auto block_t) {
    using Tile = WnPortable<T, block_t.value>;
    const WnSchedule<T, block_t.value> schedule(p.forward);
    const unsigned most = 1u << 20;  // blocks; the stride covers the rest
    const unsigned blocks = static_cast<unsigned>(schedule.groups()) < most ? schedule.groups() : most;
    const arch::Launch config{{blocks, 1, 1}, Tile::kThreads, Tile::shared_bytes(0)};
    arch::launch(wn_gate_backward_portable_kernel<T, block_t.value>, p, config, stream);
  });
}

}  // namespace fastflow
