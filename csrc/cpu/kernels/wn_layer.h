// One WN layer as two matrix products per tile of time, with the gate between them.
//
// A tile takes `tile` time steps of one batch entry. Its inputs are gathered into a window, one row per (channel, tap)
// and one per conditioning channel: conditioning is extra depth of the same product and its projection is never written
// anywhere. Rows of the window are cut into slices of kColumns steps so that the innermost loop reads memory in order:
//   window [slices, depth, kColumns]     depth = C * k + Cc
// Weights are packed into panels of kRows rows, [panels, depth, kRows]. A panel of the first product holds kRows / 2
// tanh rows and the sigmoid rows that belong to them, so the gate is applied as soon as a register tile is done:
//   activations [slices, G, kColumns]
#pragma once

#include "../../params.h"
#include "gate.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int kPairs = kRows / 2;

template <class T>
struct WnLayerPlan {
  int64_t conv_depth, depth;             // C * k; with the conditioning rows
  int64_t residual_rows, res_skip_rows;  // R, R + S
  int64_t gate_panels, res_skip_panels;
  int64_t slices, tiles;  // slices per tile, tiles per batch entry

  explicit WnLayerPlan(const WnLayerParams<T>& p) {
    conv_depth = p.channels * p.kernel_size;
    depth = conv_depth + (p.cond_weight && !cond_is_constant(p) ? p.cond_channels : 0);
    residual_rows = p.h_out ? p.channels : 0;
    res_skip_rows = residual_rows + p.skip_channels;
    gate_panels = ceil_div(p.gate_channels, kPairs);
    res_skip_panels = ceil_div(res_skip_rows, kRows);
    // Window and activations of a tile should stay in half of a second-level cache of 1 MB; wider tiles read the
    // weights less often. Beyond 8 slices the weights no longer matter.
    const int64_t slice_bytes = (depth + p.gate_channels) * kColumns<T> * static_cast<int64_t>(sizeof(T));
    slices = max(1, min(min(8, ceil_div(p.time, kColumns<T>)), (int64_t{512} << 10) / max(1, slice_bytes)));
    tiles = ceil_div(p.time, slices * kColumns<T>);
  }

  static bool cond_is_constant(const WnLayerParams<T>& p) { return p.cond && p.cond_time == 1; }
};

template <class T>
int64_t wn_layer_packed_size(const WnLayerParams<T>& p) {
  const WnLayerPlan<T> plan(p);
  return (plan.gate_panels * plan.depth + plan.res_skip_panels * p.gate_channels) * kRows;
}

template <class T>
int64_t wn_layer_panels(const WnLayerParams<T>& p) {
  const WnLayerPlan<T> plan(p);
  return plan.gate_panels + plan.res_skip_panels;
}

template <class T>
int64_t wn_layer_scratch_size(const WnLayerParams<T>& p) {
  const WnLayerPlan<T> plan(p);
  return plan.slices * kColumns<T> * (plan.depth + p.gate_channels) + 2 * p.gate_channels;
}

template <class T>
int64_t wn_layer_tiles(const WnLayerParams<T>& p) {
  return WnLayerPlan<T>(p).tiles;
}

// panel [n, kRows] <- columns of the kRows rows that `rows` points to; a null row is padding.
template <class T>
void pack_panel(const T* const (&rows)[kRows], int64_t n, T* panel) {
  for (int64_t k = 0; k < n; ++k)
    for (int r = 0; r < kRows; ++r) panel[k * kRows + r] = rows[r] ? rows[r][k] : T(0);
}

template <class T>
void wn_layer_pack(const WnLayerParams<T>& p, int64_t begin, int64_t end, T* packed) {
  const WnLayerPlan<T> plan(p);
  const int64_t cond_depth = plan.depth - plan.conv_depth;
  for (int64_t panel = begin; panel < end; ++panel) {
    const T* rows[kRows];
    if (panel < plan.gate_panels) {
      T* out = packed + panel * plan.depth * kRows;
      const T* cond_rows[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int64_t pair = panel * kPairs + r % kPairs;
        const int64_t row = r < kPairs ? pair : p.gate_channels + pair;
        const bool padding = pair >= p.gate_channels;
        rows[r] = padding ? nullptr : p.conv_weight + row * plan.conv_depth;
        cond_rows[r] = padding || !cond_depth ? nullptr : p.cond_weight + row * p.cond_channels;
      }
      pack_panel(rows, plan.conv_depth, out);
      pack_panel(cond_rows, cond_depth, out + plan.conv_depth * kRows);
    } else {
      const int64_t first = (panel - plan.gate_panels) * kRows;
      T* out = packed + (plan.gate_panels * plan.depth + (panel - plan.gate_panels) * p.gate_channels) * kRows;
      for (int r = 0; r < kRows; ++r)
        rows[r] = first + r < plan.res_skip_rows ? p.res_skip_weight + (first + r) * p.gate_channels : nullptr;
      pack_panel(rows, p.gate_channels, out);
    }
  }
}

// out [kColumns] = source[start + i] + bias where 0 <= start + i < n, else 0.
template <class T>
void copy_padded(const T* source, int64_t start, int64_t n, T bias, T* out) {
  const int64_t first = min(max(-start, 0), kColumns<T>);
  const int64_t last = max(first, min(n - start, kColumns<T>));
  for (int64_t i = 0; i < first; ++i) out[i] = 0;
  for (int64_t i = first; i < last; ++i) out[i] = source[start + i] + bias;
  for (int64_t i = last; i < kColumns<T>; ++i) out[i] = 0;
}

template <class T>
void gather_window(const WnLayerParams<T>& p, const WnLayerPlan<T>& plan, int64_t b, int64_t t0, T* window) {
  const T* h = p.h + b * p.h_batch;
  const T* input_bias = p.input_bias ? p.input_bias + b * p.input_bias_batch : nullptr;
  for (int64_t s = 0; s < plan.slices; ++s) {
    const int64_t t = t0 + s * kColumns<T>;
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t tap = 0; tap < p.kernel_size; ++tap, window += kColumns<T>)
        copy_padded(
            h + c * p.time, t + tap * p.dilation - p.left_padding, p.time, input_bias ? input_bias[c] : T(0), window);
    if (plan.depth == plan.conv_depth) continue;
    const T* cond = p.cond + b * p.cond_batch;
    for (int64_t c = 0; c < p.cond_channels; ++c, window += kColumns<T>)
      copy_padded(cond + c * p.time, t, p.time, T(0), window);
  }
}

// base [2G]: the part of u that is constant in time.
template <class T>
void gather_base(const WnLayerParams<T>& p, int64_t b, T* base) {
  const T* cond = WnLayerPlan<T>::cond_is_constant(p) ? p.cond + b * p.cond_batch : nullptr;
  for (int64_t row = 0; row < 2 * p.gate_channels; ++row) {
    T sum = 0;
    if (cond && p.cond_weight) {
      for (int64_t c = 0; c < p.cond_channels; ++c) sum += p.cond_weight[row * p.cond_channels + c] * cond[c];
    } else if (cond) {
      sum = cond[row];
    }
    base[row] = sum + (p.conv_bias ? p.conv_bias[row] : T(0)) + (p.cond_bias ? p.cond_bias[row] : T(0));
  }
}

// out [kRows, kColumns] = panel [depth, kRows] transposed @ slice [depth, kColumns], accumulated in registers.
template <class T>
inline __attribute__((always_inline)) void register_tile(const T* panel, const T* slice, int64_t depth, T* out) {
  using V = typename Vector<T>::type;
  V sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = reinterpret_cast<const V*>(slice + k * kColumns<T>)[v];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += panel[k * kRows + r] * column[v];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) reinterpret_cast<V*>(out + r * kColumns<T>)[v] = sum[r][v];
}

template <class T>
void gate_product(
    const WnLayerParams<T>& p, const WnLayerPlan<T>& plan, int64_t b, int64_t t0, const T* packed, const T* window,
    const T* base, T* activations) {
  alignas(64) T out[kRows * kColumns<T>];
  // Already projected conditioning that varies in time is added here, [2G, T].
  const T* projected =
      p.cond && !p.cond_weight && !WnLayerPlan<T>::cond_is_constant(p) ? p.cond + b * p.cond_batch : nullptr;
  for (int64_t panel = 0; panel < plan.gate_panels; ++panel) {
    const int64_t first = panel * kPairs, pairs = min(kPairs, p.gate_channels - first);
    for (int64_t s = 0; s < plan.slices; ++s) {
      const int64_t t = t0 + s * kColumns<T>, valid = max(0, min(kColumns<T>, p.time - t));
      register_tile(packed + panel * plan.depth * kRows, window + s * plan.depth * kColumns<T>, plan.depth, out);
      for (int64_t r = 0; r < pairs; ++r) {
        T* pair[2] = {out + r * kColumns<T>, out + (r + kPairs) * kColumns<T>};
        for (int half = 0; half < 2; ++half) {
          const int64_t row = half * p.gate_channels + first + r;
          for (int64_t i = 0; i < kColumns<T>; ++i) pair[half][i] += base[row];
          if (!projected) continue;
          for (int64_t i = 0; i < valid; ++i) pair[half][i] += projected[row * p.time + t + i];
        }
        gate_row(pair[0], pair[1], activations + (s * p.gate_channels + first + r) * kColumns<T>, kColumns<T>);
      }
    }
  }
}

template <class T>
void res_skip_product(
    const WnLayerParams<T>& p, const WnLayerPlan<T>& plan, int64_t b, int64_t t0, const T* packed,
    const T* activations) {
  alignas(64) T out[kRows * kColumns<T>];
  for (int64_t panel = 0; panel < plan.res_skip_panels; ++panel) {
    const int64_t first = panel * kRows, rows = min(kRows, plan.res_skip_rows - first);
    for (int64_t s = 0; s < plan.slices; ++s) {
      const int64_t t = t0 + s * kColumns<T>, valid = min(kColumns<T>, p.time - t);
      if (valid <= 0) break;
      const T* mask = p.mask ? p.mask + b * p.mask_batch + t : nullptr;
      register_tile(
          packed + panel * p.gate_channels * kRows, activations + s * p.gate_channels * kColumns<T>, p.gate_channels,
          out);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = first + r;
        const T* value = out + r * kColumns<T>;
        const T bias = p.res_skip_bias ? p.res_skip_bias[row] : T(0);
        if (row < plan.residual_rows) {
          const T* h = p.h + b * p.h_batch + row * p.time + t;
          T* h_out = p.h_out + (b * plan.residual_rows + row) * p.time + t;
          for (int64_t i = 0; i < valid; ++i) h_out[i] = (h[i] + (value[i] + bias)) * p.res_scale;
          if (!mask) continue;
          for (int64_t i = 0; i < valid; ++i) h_out[i] *= mask[i];
        } else {
          T* skip = p.skip + (b * p.skip_channels + row - plan.residual_rows) * p.time + t;
          if (p.skip_accumulate) {
            for (int64_t i = 0; i < valid; ++i) skip[i] = (skip[i] + (value[i] + bias)) * p.skip_scale;
          } else {
            for (int64_t i = 0; i < valid; ++i) skip[i] = (value[i] + bias) * p.skip_scale;
          }
          if (!mask || !p.skip_masked) continue;
          for (int64_t i = 0; i < valid; ++i) skip[i] *= mask[i];
        }
      }
    }
  }
}

template <class T>
void wn_layer(const WnLayerParams<T>& p, int64_t begin, int64_t end, const T* packed, T* scratch) {
  const WnLayerPlan<T> plan(p);
  T* window = scratch;
  T* activations = window + plan.slices * plan.depth * kColumns<T>;
  T* base = activations + plan.slices * p.gate_channels * kColumns<T>;
  const T* packed_res_skip = packed + plan.gate_panels * plan.depth * kRows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / plan.tiles, t0 = task % plan.tiles * plan.slices * kColumns<T>;
    if (task == begin || t0 == 0) gather_base(p, b, base);
    gather_window(p, plan, b, t0, window);
    gate_product(p, plan, b, t0, packed, window, base, activations);
    res_skip_product(p, plan, b, t0, packed_res_skip, activations);
  }
}

}  // namespace fastflow::FASTFLOW_ISA
