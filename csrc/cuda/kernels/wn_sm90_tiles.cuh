// The tiles of wn_sm90.cuh, the choice among them, and the launch.
#pragma once

#include <algorithm>
#include <arch/launch.cuh>
#include <limits>
#include <stdexcept>

#include "wn_sm90.cuh"

namespace fastflow {

// What to expect of a tile, in cycles per layer; only comparisons count. Figures are of H100 and H200.
template <class Tile, class T>
double wn_sm90_cycles(const WnParams<T>& p, const arch::Device& device) {
  constexpr double products_per_cycle = 2048;  // multiply-adds of a multiprocessor
  constexpr double l2_bytes_per_cycle = 24;    // of each multiprocessor when all load; one alone gets
  constexpr double most_bytes_per_cycle = 64;
  constexpr double hand_over = 2000;  // first loads, flags, exchange between blocks
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  constexpr bool by_rows = Tile::kSplit == WnSplit::kRows, by_time = Tile::kSplit == WnSplit::kTime;
  const auto share = [&](int64_t count) { return by_rows ? ceil_div(count, Tile::kCluster) : count; };

  const typename Tile::Schedule schedule(p);
  const int64_t groups = schedule.groups_per_layer(), units = std::max(1, device.multiprocessors / Tile::kCluster);
  const double busy = static_cast<double>(std::min(groups, units) * Tile::kCluster);
  const int64_t passes = share(ceil_div(2 * p.gate_channels, Tile::kRows));
  const int64_t blocks = share(ceil_div(p.channels + p.skip_channels, Tile::kRows));
  const int64_t cond_stages = p.cond == WnCond::kLocal ? passes * ceil_div(p.cond_channels, Tile::kDepth) : 0;
  const int64_t gate_stages = passes * p.kernel_size * ceil_div(p.channels, Tile::kDepth) + cond_stages;
  const int64_t output_stages = blocks * ceil_div(p.gate_channels, Tile::kDepth);

  const double x_bytes = Tile::kXBytes / (by_rows ? Tile::kCluster : 1.0);
  const double w_bytes = Tile::kWBytes / (by_time ? Tile::kCluster : 1.0);
  // How many weights of phases a cluster loads: one for each group of a whole row of tiles, else parts of w tiles in a
  // row of which each begins anywhere.
  const int64_t rest = schedule.tiles() % Tile::kCluster, whole = schedule.tiles() / Tile::kCluster;
  const double in_rest = p.phases == 1 ? 1 : rest == 0 ? 0 : (rest + Tile::kCluster - 1.0) / Tile::kCluster;
  const double phases_of_group = by_time && p.phases > 1 ? (whole + in_rest) * p.phases * p.batch / groups : 1;
  const double products = double(gate_stages + output_stages) * Tile::kSteps * Tile::kRows * Tile::kDepth;
  const double bytes =
      gate_stages * x_bytes + (gate_stages - cond_stages + output_stages + cond_stages * phases_of_group) * w_bytes;
  const double rate = std::min(most_bytes_per_cycle, l2_bytes_per_cycle * device.multiprocessors / busy);
  // Two tanh per gated channel at 16 a cycle; 4 bytes in and out per output at 32 a cycle.
  const double gate = double(passes) * Tile::kSteps * Tile::kRows / 16;
  const double outputs = double(blocks) * Tile::kSteps * Tile::kRows * 4 / 32;
  const double item = std::max(products / products_per_cycle, bytes / rate) + gate + outputs + hand_over;
  return item * std::max(1.0, double(groups) / double(units));
}

template <class Tile>
int wn_sm90_stages(int gate_channels, const arch::Device& device) {
  const int left = device.shared_per_block - Tile::kBarrierBytes - Tile::gated_bytes(gate_channels);
  return std::min(left / Tile::kStageBytes, Tile::kMostStages);
}

// An array of four dimensions, innermost first; steps[i] is the distance of dimension i + 1 in elements. Boxes have 64
// of the innermost one and box_rows of dimension `box`.
template <class T>
arch::TensorMap wn_sm90_map(
    const T* base, const int64_t (&sizes)[4], const int64_t (&steps)[3], int box, int box_rows) {
  if (!base) return {};
  uint64_t dims[4] = {static_cast<uint64_t>(sizes[0])}, strides[3];
  uint32_t boxes[4] = {64, 1, 1, 1};
  for (int i = 1; i < 4; ++i) {
    dims[i] = static_cast<uint64_t>(sizes[i]);
    // The distance to where nothing is does not matter, but it has to be a multiple of 16 bytes.
    const uint64_t dense = i == 1 ? (dims[0] + 7) / 8 * 8 * sizeof(T) : strides[i - 2] * dims[i - 1];
    strides[i - 1] = sizes[i] == 1 ? dense : static_cast<uint64_t>(steps[i - 1]) * sizeof(T);
  }
  boxes[box] = static_cast<uint32_t>(box_rows);
  return arch::make_tensor_map<T>(base, dims, strides, boxes);
}

// Steps [B, T / P, P, columns]: boxes are rows of frames.
template <class T>
arch::TensorMap wn_sm90_steps(
    const T* base, int64_t columns, int64_t phases, int64_t frames, int64_t batch, int64_t step, int64_t batch_step,
    int box_rows) {
  return wn_sm90_map(base, {columns, phases, frames, batch}, {step, phases * step, batch_step}, 2, box_rows);
}

// Weights [sets, halves, rows, columns], dense.
template <class T>
arch::TensorMap wn_sm90_weights(
    const T* base, int64_t columns, int64_t rows, int64_t halves, int64_t sets, int box_rows) {
  return wn_sm90_map(
      base, {columns, rows, halves, sets}, {columns, rows * columns, halves * rows * columns}, 1, box_rows);
}

template <class Tile, class T>
void launch_wn_sm90_tile(const WnParams<T>& p, const arch::Device& device, arch::Stream stream) {
  WnSm90Params<T> params = {};
  params.wn = p;
  params.stages = wn_sm90_stages<Tile>(p.gate_channels, device);

  const int64_t C = p.channels, G = p.gate_channels, Cc = p.cond_channels, P = p.phases, frames = p.frames;
  params.h = wn_sm90_steps(p.h, C, P, frames, p.batch, p.h_step, p.h_batch, Tile::kXBox);
  for (int i = 0; i < 2; ++i) {
    params.states[i] = wn_sm90_steps<T>(p.states[i], C, P, frames, p.batch, C, p.time * C, Tile::kXBox);
  }
  if (p.cond == WnCond::kLocal) {
    params.cond = wn_sm90_steps(p.layer[0].cond, Cc, 1, frames, p.batch, p.cond_step, p.cond_batch, Tile::kXBox);
  }
  for (int l = 0; l < p.layers; ++l) {
    const WnLayerArrays<T>& from = p.layer[l];
    WnSm90LayerMaps& to = params.layer[l];
    to.conv = wn_sm90_weights(from.conv_weight, p.kernel_size * C, G, 2, 1, Tile::kWBox);
    if (p.cond == WnCond::kLocal) to.cond = wn_sm90_weights(from.cond_weight, Cc, G, 2, P, Tile::kWBox);
    to.res_skip = wn_sm90_weights(from.res_skip_weight, G, p.residual_rows(l) + p.skip_channels, 1, 1, Tile::kWBox);
  }

  arch::Launch config;
  config.threads = Tile::kThreads;
  config.cluster = Tile::kCluster;
  config.shared_bytes = params.stages * Tile::kStageBytes + Tile::gated_bytes(p.gate_channels) + Tile::kBarrierBytes;
  config.grid.x = Tile::kCluster;
  const typename Tile::Schedule schedule(p);
  const int units = std::min(schedule.groups(), arch::resident_clusters(wn_sm90_kernel<Tile>, config));
  if (units == 0) throw std::runtime_error("wn: the GPU has no room for one cluster of blocks");
  config.grid.x = static_cast<unsigned>(units * Tile::kCluster);
  if (p.layers > 1) {
    arch::zero_async(p.done, size_t(p.layers) * schedule.per_layer() * sizeof(uint32_t), stream);
  }
  config.cooperative = p.layers > 1;
  arch::launch(wn_sm90_kernel<Tile>, params, config, stream);
}

// The tile with the least cycles by the estimate, among those that leave room for two stages. 128 steps by 256 rows are
// the largest product whose accumulators the registers hold, with 48 KB a stage at 1024 cycles of products.
template <class T>
void launch_wn_sm90(const WnParams<T>& p, const arch::Device& device, arch::Stream stream) {
  void (*best)(const WnParams<T>&, const arch::Device&, arch::Stream) = nullptr;
  double least = std::numeric_limits<double>::max();
  const auto consider = [&]<class Tile>(Tile*) {
    if (wn_sm90_stages<Tile>(p.gate_channels, device) < 2) return;
    const double cycles = wn_sm90_cycles<Tile>(p, device);
    if (cycles < least) {
      least = cycles;
      best = launch_wn_sm90_tile<Tile, T>;
    }
  };
  using enum WnSplit;
  // Long inputs. The blocks of a cluster share each tile of weights, which is most of the traffic: per stage, 48 KB
  // come from L2 without a cluster, 32 KB with two blocks, 24 KB with four; four fit fewer multiprocessors.
  consider(static_cast<WnSm90<T, 128, 2, 1, kNone>*>(nullptr));
  consider(static_cast<WnSm90<T, 128, 2, 2, kTime>*>(nullptr));
  consider(static_cast<WnSm90<T, 128, 2, 4, kTime>*>(nullptr));
  // Too few tiles of steps for all multiprocessors: the rows are split, too.
  consider(static_cast<WnSm90<T, 128, 2, 2, kRows>*>(nullptr));
  consider(static_cast<WnSm90<T, 64, 2, 4, kRows>*>(nullptr));
  consider(static_cast<WnSm90<T, 64, 1, 4, kRows>*>(nullptr));
  // Few channels: GB = 128 would be half empty. Very many: the gated tile leaves room for small stages only.
  consider(static_cast<WnSm90<T, 64, 2, 1, kNone>*>(nullptr));
  consider(static_cast<WnSm90<T, 64, 1, 1, kNone>*>(nullptr));
  if (!best) throw std::runtime_error("wn: 64 steps of the gate's channels do not fit into this GPU's shared memory");
  best(p, device, stream);
}

}  // namespace fastflow
