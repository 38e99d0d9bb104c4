// Backward of one WN layer's gate on the matrix units of sm_80 and later. The gate's inputs u are made again as in the
// forward (wn_sm80.cuh); the gradients of its outputs come from a second product for the same steps and channels:
//   u[t, 2 * PASS]  = sum over kk of x[t, kk] * w[row, kk] + vectors      kk: taps and channels, then conditioning
//   da[t, PASS]     = sum over r of grad_r[t, r] * w[r, g]                r: the R + S output rows
// Both stay in registers, in one layout; a block makes BLOCK_T steps by PASS channels. The second product's weights
// [R + S, G] lie the other way round than a fragment wants them: see Weights::kByDepth.
#pragma once

#include <arch/launch.cuh>

#include "../launch.h"
#include "wn_gate.cuh"
#include "wn_schedule.cuh"
#include "wn_sm80_tile.cuh"

namespace fastflow::sm80 {

// 4 x 4 words of the four lanes of a quad, transposed: w[i] becomes w[lane % 4] of the quad's lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
    const bool upper = lane & mask;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & mask) continue;
      // the lower lane of each pair gives away the word of the upper place, and the other way round
      const uint32_t other = arch::shuffle_xor(upper ? w[i] : w[i | mask], mask);
      if (upper) {
        w[i] = other;
      } else {
        w[i | mask] = other;
      }
    }
  }
}

template <class T, int BLOCK_T>
struct GateBackward {
  // A warp's channels are 32, so that after an exchange within quads every lane stores 8 neighbours. With them there
  // are 96 accumulators to a thread in the longest tile.
  static constexpr int kPass = 64;
  using Tile = WarpTile<T, BLOCK_T, 2 * kPass, 4>;
  using GradTile = WarpTile<T, BLOCK_T, kPass, 4, Weights::kByDepth>;
  static_assert(Tile::kN == 8 && GradTile::kN == 4);
  using Copies = Segment<T, BLOCK_T, 2 * kPass>;
  using Stages = Ring<Copies::kStageBytes>;
  static constexpr int kBytes = Stages::kBytes;

  const WnGateBackwardParams<T>& p;
  const WnParams<T>& f;
  const GateInputs<T> inputs;
  const int g0;
  const int rows;  // R + S
  Stages ring;

  Copies segment;
  int index = 0;

  __device__ __forceinline__ GateBackward(const WnGateBackwardParams<T>& p, const WnItem& item, int g0)
      : p(p),
        f(p.forward),
        inputs(p.forward, item),
        g0(g0),
        rows(p.forward.residual_rows(0) + p.forward.skip_channels),
        ring(arch::shared_memory()) {}

  __device__ __forceinline__ void enter() {
    if (index < inputs.segments()) {
      inputs.enter(segment, index, g0);
    } else {
      segment.set_x(
          p.grad_r + int64_t(inputs.item.batch) * f.time * rows, int64_t(inputs.item.t0) * rows, rows, inputs.item.t0,
          1);
      segment.remaining = rows;
    }
  }

  // [kDepth, kPass] of the second product's weights: one chunk for each thread.
  __device__ __forceinline__ void copy_by_depth(arch::shared_t stage) const {
    constexpr int chunks = kPass / kChunk<T>;
    static_assert(chunks * kDepth<T> == kThreads);
    const int depth = static_cast<int>(threadIdx.x) / chunks, chunk = static_cast<int>(threadIdx.x) % chunks;
    const int r = rows - segment.remaining + depth, g = g0 + chunk * kChunk<T>;
    const T* weight = inputs.layer.res_skip_weight;
    const bool valid = r < rows && g < f.gate_channels;
    arch::copy_async_16(
        stage + Copies::kXBytes + swizzled_by_depth<T, kPass>(depth, chunk),
        valid ? weight + int64_t(r) * f.gate_channels + g : weight, valid);
  }

  __device__ __forceinline__ void copy(arch::shared_t stage) {
    if (index > inputs.segments()) return;
    segment.copy_x(stage, 1, f.time);
    if (index < inputs.segments()) {
      segment.copy_w(stage);
    } else {
      copy_by_depth(stage);
    }
    segment.advance();
    if (segment.remaining <= 0 && ++index <= inputs.segments()) enter();
  }

  __device__ __forceinline__ void run() {
    const auto copy_step = [this](arch::shared_t stage) { copy(stage); };
    const auto x = [](int, arch::shared_t stage) { return stage; };
    enter();
    ring.fill(copy_step);
    Tile u;
    u.clear();
    ring.template multiply<Copies::kXBytes>(u, inputs.steps(), x, copy_step);
    GradTile grad;
    grad.clear();
    ring.template multiply<Copies::kXBytes>(grad, ceil_div(rows, kDepth<T>), x, copy_step);
    inputs.add_vectors(u, g0);

    const typename Tile::Place place;
    const int g = g0 + place.row0 / 2 + place.quad * 8;
#pragma unroll
    for (int i = 0; i < Tile::kM; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float a[4][2], grad_u[4][2], grad_v[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const WnGate<T> gate(u.acc[i][2 * j][2 * e + c], u.acc[i][2 * j + 1][2 * e + c]);
            const float grad_a = grad.acc[i][j][2 * e + c];
            a[j][c] = gate.value();
            grad_u[j][c] = gate.grad_u(grad_a);
            grad_v[j][c] = gate.grad_v(grad_a);
          }
        }
        const auto a_8 = gathered(a), grad_u_8 = gathered(grad_u), grad_v_8 = gathered(grad_v);
        const int t = inputs.time_of(place.step(i, e));
        if (t >= f.time || g >= f.gate_channels) continue;
        const int64_t at = int64_t(inputs.item.batch) * f.time + t;
        a_8.store(p.a + at * f.gate_channels + g);
        grad_u_8.store(p.grad_u + at * 2 * f.gate_channels + g);
        grad_v_8.store(p.grad_u + at * 2 * f.gate_channels + f.gate_channels + g);
      }
    }
  }

  // v[j] are this lane's two of the 8 channels j; after an exchange it has all 8 channels of j = lane % 4.
  static __device__ __forceinline__ Vector<T, 8> gathered(const float (&v)[4][2]) {
    if constexpr (sizeof(T) == 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) pairs[j] = arch::pack2<T>(v[j][0], v[j][1]);
      transpose_quad(pairs);
      Vector<T, 8> packed;
#pragma unroll
      for (int j = 0; j < 4; ++j) packed.word(j) = pairs[j];
      return packed;
    } else {
      float w[8];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        uint32_t singles[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) singles[j] = arch::bits_to<uint32_t>(v[j][c]);
        transpose_quad(singles);
#pragma unroll
        for (int j = 0; j < 4; ++j) w[2 * j + c] = arch::bits_to<float>(singles[j]);
      }
      return Vector<T, 8>::pack(w);
    }
  }
};

// Blocks that share a tile of steps follow each other: they read the same activations.
template <class T, int BLOCK_T>
__global__ void __launch_bounds__(kThreads, 1)
    wn_gate_backward_kernel(const __grid_constant__ WnGateBackwardParams<T> p) {
#if FASTFLOW_SM80
  using Backward = GateBackward<T, BLOCK_T>;
  const int passes = ceil_div(p.forward.gate_channels, Backward::kPass);
  const WnItem item = WnSchedule<T, BLOCK_T>(p.forward).item(static_cast<int>(blockIdx.x) / passes);
  Backward(p, item, static_cast<int>(blockIdx.x) % passes * Backward::kPass).run();
#endif
}

}  // namespace fastflow::sm80

namespace fastflow {

template <class T>
void launch_wn_gate_backward_sm80(const WnGateBackwardParams<T>& p, const arch::Device& device, arch::Stream stream) {
  const auto launch = [&](auto block_t) {
    using Backward = sm80::GateBackward<T, block_t.value>;
    const int passes = sm80::ceil_div(p.forward.gate_channels, Backward::kPass);
    const unsigned blocks = static_cast<unsigned>(WnSchedule<T, block_t.value>(p.forward).groups() * passes);
    const arch::Launch how{{blocks, 1, 1}, sm80::kThreads, Backward::kBytes};
    arch::launch(sm80::wn_gate_backward_kernel<T, block_t.value>, p, how, stream);
  };
  // Long tiles read the weights less often, if there are enough of them for all multiprocessors.
  const int64_t passes = sm80::ceil_div(p.forward.gate_channels, 64);
  if (WnSchedule<T, 128>(p.forward).groups() * passes >= device.multiprocessors) {
    launch(std::integral_constant<int, 128>());
  } else {
    launch(std::integral_constant<int, 64>());
  }
}

}  // namespace fastflow
