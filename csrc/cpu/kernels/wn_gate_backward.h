// Backward of a WN layer's second product and gate, a slice of time at a time: each register tile of
//   grad_a = res_skip_weight transposed @ grad_r   [G, kColumns]
// meets the input of the gate, and is never written anywhere.
#pragma once

#include "../../params.h"
#include "product.h"
#include "wn_layer.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int64_t kBackwardSlices = 4;  // of a tile: beyond that, how often the weights are read no longer matters

template <class T>
int64_t wn_gate_backward_panels(const WnGateBackwardRowParams<T>& p) {
  return ceil_div(p.gate_channels, kRows);
}

template <class T>
int64_t wn_gate_backward_packed_size(const WnGateBackwardRowParams<T>& p) {
  return wn_gate_backward_panels(p) * p.rows * kRows * static_cast<int64_t>(sizeof(T));
}

template <class T>
int64_t wn_gate_backward_scratch_size(const WnGateBackwardRowParams<T>& p) {
  return kBackwardSlices * p.rows * kColumns<T> * static_cast<int64_t>(sizeof(T));
}

template <class T>
int64_t wn_gate_backward_tiles(const WnGateBackwardRowParams<T>& p) {
  return ceil_div(p.time, kBackwardSlices * kColumns<T>);
}

template <class T>
void wn_gate_backward_pack(const WnGateBackwardRowParams<T>& p, int64_t begin, int64_t end, void* memory) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t k = 0; k < p.rows; ++k)
      put_weights<Plain<T>>(static_cast<T*>(memory) + panel * p.rows * kRows, k, [&](int r) {
        const int64_t g = panel * kRows + r;
        return g < p.gate_channels ? p.res_skip_weight[k * p.gate_channels + g] : T(0);
      });
}

template <class T>
void wn_gate_backward(
    const WnGateBackwardRowParams<T>& p, int64_t begin, int64_t end, const void* packed, void* scratch) {
  constexpr int64_t W = kColumns<T>;
  const int64_t tiles = wn_gate_backward_tiles(p), panels = wn_gate_backward_panels(p), G = p.gate_channels;
  T* window = static_cast<T*>(scratch);
  alignas(64) T memory[W], grad_a[kRows * W], tanh_memory[W], sigmoid_memory[W];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / tiles, t0 = task % tiles * kBackwardSlices * W;
    const int64_t slices = min(kBackwardSlices, ceil_div(p.time - t0, W));
    const T* grad_r = p.grad_r + b * p.grad_r_batch;
    const T* u = p.u + b * 2 * G * p.time;
    for (int64_t s = 0; s < slices; ++s)
      for (int64_t row = 0; row < p.rows; ++row)
        put_row<Plain<T>>(
            window + s * p.rows * W, row, padded(grad_r + row * p.time, t0 + s * W, p.time, T(0), W, memory));
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t s = 0; s < slices; ++s) {
        Tile<T> sum = {};
        multiply<Plain<T>>(
            static_cast<const T*>(packed) + panel * p.rows * kRows, window + s * p.rows * W, p.rows, sum);
        store_tile<T, kVectors>(sum, grad_a);
        const int64_t t = t0 + s * W, valid = min(W, p.time - t);
        for (int64_t g = panel * kRows; g < min(G, (panel + 1) * kRows); ++g) {
          const T* grad = grad_a + g % kRows * W;
          const T* tanh_in = padded(u + g * p.time, t, p.time, T(0), W, tanh_memory);
          const T* sigmoid_in = padded(u + (G + g) * p.time, t, p.time, T(0), W, sigmoid_memory);
          T a[W], grad_tanh[W], grad_sigmoid[W];
          for (int64_t i = 0; i < W; ++i) {
            const T tanh = tanh_value(tanh_in[i]), sigmoid = sigmoid_value(sigmoid_in[i]);
            a[i] = tanh * sigmoid;
            grad_tanh[i] = grad[i] * sigmoid * (1 - tanh * tanh);
            grad_sigmoid[i] = grad[i] * a[i] * (1 - sigmoid);
          }
          T* a_out = p.a + (b * G + g) * p.time + t;
          T* grad_u = p.grad_u + (b * 2 * G + g) * p.time + t;
          for (int64_t i = 0; i < valid; ++i) a_out[i] = a[i];
          for (int64_t i = 0; i < valid; ++i) grad_u[i] = grad_tanh[i];
          for (int64_t i = 0; i < valid; ++i) grad_u[G * p.time + i] = grad_sigmoid[i];
        }
      }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
