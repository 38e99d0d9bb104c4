// The gated activation unit and its gradient. The channels of a half lie behind each other: to these kernels a batch
// entry is one row of G * T elements.
#pragma once

#include "lane_tile.cuh"
#include "wn_gate.cuh"

namespace fastflow {

template <class T>
__global__ void __launch_bounds__(kRowThreads) gate_kernel(const GateParams<T> p) {
  using Tile = ElementTile<T>;
  constexpr int count = 32 / sizeof(T);
  const int64_t half = p.channels * p.time;
  const WarpItem item(Tile::tiles(half));
  if (item.row >= p.batch) return;
  const T* u = p.x + item.row * p.x_batch;  // [G, T]
  const T* v = u + half;                    // [G, T]
  T* y = p.y + item.row * half;             // [G, T]
  const int64_t first = static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(y);
  const Tile tile(first, half, Tile::is_aligned(u + first) && Tile::is_aligned(v + first));
  accumulator_t<T> us[count], vs[count];
  tile.load(u, us);
  tile.load(v, vs);
#pragma unroll
  for (int e = 0; e < count; ++e) us[e] = WnGate<T>(us[e], vs[e]).value();
  tile.store(y, us);
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) gate_backward_kernel(const GateBackwardParams<T> p) {
  using Tile = ElementTile<T>;
  constexpr int count = 32 / sizeof(T);
  const int64_t half = p.channels * p.time;
  const WarpItem item(Tile::tiles(half));
  if (item.row >= p.batch) return;
  const T* u = p.x + item.row * p.x_batch;           // [G, T]
  const T* v = u + half;                             // [G, T]
  const T* grad = p.grad + item.row * p.grad_batch;  // [G, T]
  T* grad_u = p.grad_x + item.row * 2 * half;        // [G, T]
  T* grad_v = grad_u + half;                         // [G, T]
  const int64_t first = static_cast<int64_t>(item.tile) * Tile::kSize - Tile::elements_past_boundary(grad_u);
  const Tile tile(
      first, half,
      Tile::is_aligned(u + first) && Tile::is_aligned(v + first) && Tile::is_aligned(grad + first) &&
          Tile::is_aligned(grad_v + first));
  accumulator_t<T> us[count], vs[count], gs[count];
  tile.load(u, us);
  tile.load(v, vs);
  tile.load(grad, gs);
#pragma unroll
  for (int e = 0; e < count; ++e) {
    const WnGate<T> gate(us[e], vs[e]);
    us[e] = gate.grad_u(gs[e]);
    vs[e] = gate.grad_v(gs[e]);
  }
  tile.store(grad_u, us);
  tile.store(grad_v, vs);
}

template <class T>
void launch_gate(const GateParams<T>& p, arch::Stream stream) {
  const int64_t items = p.batch * ElementTile<T>::tiles(p.channels * p.time);
  arch::launch(gate_kernel<T>, p, arch::Launch{grid_of(items, kRowThreads / 32), kRowThreads, 0}, stream);
}

template <class T>
void launch_gate_backward(const GateBackwardParams<T>& p, arch::Stream stream) {
  const int64_t items = p.batch * ElementTile<T>::tiles(p.channels * p.time);
  arch::launch(gate_backward_kernel<T>, p, arch::Launch{grid_of(items, kRowThreads / 32), kRowThreads, 0}, stream);
}

}  // namespace fastflow
