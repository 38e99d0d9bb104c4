// One WN layer as two matrix products per tile of time, with the gate between them.
//
// A tile takes some time steps of one batch entry, in slices of kColumns. The inputs of each slice are gathered into a
// window, whose depth is C * k rows for the convolution and Cc for the conditioning: that is extra depth of the same
// product, and its projection is never written anywhere. A panel of the first product holds kRows / 2 tanh rows and the
// sigmoid rows that belong to them, so the gate is applied as soon as a register tile is done:
//   activations [slices, G, kColumns]
//
// Where k = 3, slices go in pairs whose steps lie one dilation d apart, and the convolution is done by minimal
// filtering, F(2, 3): of d0 .. d3 = h at t - left .. t - left + 3 d, and the taps g0 .. g2,
//   m1 = (d0 - d2) g0    m2 = (d1 + d2) (g0 + g1 + g2) / 2    m3 = (d2 - d1) (g0 - g1 + g2) / 2    m4 = (d3 - d1) g2
//   u[t] = m1 + m2 + m3    u[t + d] = m2 - m3 + m4
// are four products for two steps, not six. No output depends on an input that is not in its window.
#pragma once

#include "../../params.h"
#include "gate.h"
#include "interleave.h"
#include "product.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int kPairs = kRows / 2;

// O says what the products multiply: Plain<T>, or Bf16Pairs.
template <class O>
struct WnLayerPlan {
  using T = typename O::value;
  static constexpr int64_t W = kColumns<T>;

  int64_t time, dilation;
  bool filtered;
  int64_t residual_rows, res_skip_rows;  // R, R + S
  int64_t gate_panels, res_skip_panels;
  // Steps of the products: over C * k or (filtered) C; over the conditioning; over G.
  int64_t conv_steps, cond_steps, res_skip_steps;
  // A unit is one slice, or a pair of them.
  int64_t unit_slices, panel_steps, window_steps;
  int64_t units, tile_units, tiles;  // of a batch entry, of a tile, of a batch entry

  explicit WnLayerPlan(const WnLayerParams<T>& p) : time(p.time), dilation(p.dilation) {
    // Dilations that slices come out whole with; in less than a slice there is nothing to pair.
    filtered = p.kernel_size == 3 && (W % dilation == 0 || dilation % W == 0) && time > W;
    residual_rows = p.h_out ? p.channels : 0;
    res_skip_rows = residual_rows + p.skip_channels;
    gate_panels = ceil_div(p.gate_channels, kPairs);
    res_skip_panels = ceil_div(res_skip_rows, kRows);
    conv_steps = steps<O>(filtered ? p.channels : p.channels * p.kernel_size);
    cond_steps = p.cond_weight && !cond_is_constant(p) ? steps<O>(p.cond_channels) : 0;
    res_skip_steps = steps<O>(p.gate_channels);
    unit_slices = filtered ? 2 : 1;
    panel_steps = (filtered ? 4 : 1) * conv_steps + cond_steps;
    window_steps = (filtered ? 4 : 1) * conv_steps + unit_slices * cond_steps;

    if (!filtered) {
      units = ceil_div(time, W);
    } else if (dilation < W) {
      units = ceil_div(time, 2 * W);
    } else {
      units = (time / (2 * dilation)) * (dilation / W) + ceil_div(min(time % (2 * dilation), dilation), W);
    }
    // Window and activations of a tile should stay in half of a second-level cache of 1 MB. Wider tiles read the
    // weights less often, which no longer matters beyond 8 slices; about 16 tiles share out well among threads.
    const int64_t row_bytes = W * static_cast<int64_t>(sizeof(typename O::element));
    const int64_t unit_bytes = (window_steps + unit_slices * res_skip_steps) * row_bytes;
    const int64_t most = min(8 / unit_slices, (int64_t{512} << 10) / max(1, unit_bytes));
    tile_units = max(1, min(most, ceil_div(units, 16)));
    tiles = ceil_div(units, tile_units);
  }

  static bool cond_is_constant(const WnLayerParams<T>& p) { return p.cond && p.cond_time == 1; }

  // The first step of a unit's slice.
  int64_t slice_time(int64_t unit, int64_t slice) const {
    if (!filtered) return unit * W;
    if (dilation < W) return (2 * unit + slice) * W;
    const int64_t pairs = dilation / W;  // in each block of two dilations
    return (unit / pairs * 2 + slice) * dilation + unit % pairs * W;
  }

  int64_t scratch_elements() const { return tile_units * (window_steps + unit_slices * res_skip_steps) * W; }
};

template <class O>
int64_t wn_layer_packed_size(const WnLayerParams<typename O::value>& p) {
  const WnLayerPlan<O> plan(p);
  const int64_t elements = (plan.gate_panels * plan.panel_steps + plan.res_skip_panels * plan.res_skip_steps) * kRows;
  return elements * static_cast<int64_t>(sizeof(typename O::element));
}

template <class O>
int64_t wn_layer_panels(const WnLayerParams<typename O::value>& p) {
  const WnLayerPlan<O> plan(p);
  return plan.gate_panels + plan.res_skip_panels;
}

template <class O>
int64_t wn_layer_scratch_size(const WnLayerParams<typename O::value>& p) {
  return WnLayerPlan<O>(p).scratch_elements() * static_cast<int64_t>(sizeof(typename O::element)) +
         2 * p.gate_channels * static_cast<int64_t>(sizeof(typename O::value));
}

template <class O>
int64_t wn_layer_tiles(const WnLayerParams<typename O::value>& p) {
  return WnLayerPlan<O>(p).tiles;
}

// Weights of a panel of the first product: [conv, cond]; filtered [m2, m3, m1, cond, m4].
template <class O>
void pack_gate_panel(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t panel, typename O::element* packed) {
  using T = typename O::value;
  const T *conv[kRows], *cond[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t pair = panel * kPairs + r % kPairs;
    const int64_t row = r < kPairs ? pair : p.gate_channels + pair;
    const bool padding = pair >= p.gate_channels;
    conv[r] = padding ? nullptr : p.conv_weight + row * p.channels * p.kernel_size;
    cond[r] = padding || !plan.cond_steps ? nullptr : p.cond_weight + row * p.cond_channels;
  }
  const int64_t conv_size = plan.conv_steps * kRows, cond_size = plan.cond_steps * kRows;
  typename O::element* cond_panel = packed + conv_size;
  if (!plan.filtered) {
    for (int64_t k = 0; k < p.channels * p.kernel_size; ++k)
      put_weights<O>(packed, k, [&](int r) { return conv[r] ? conv[r][k] : T(0); });
  } else {
    cond_panel += 2 * conv_size;
    for (int64_t c = 0; c < p.channels; ++c) {
      T m[4][kRows] = {};
      for (int r = 0; r < kRows; ++r) {
        if (!conv[r]) continue;
        const T *g = conv[r] + 3 * c, ends = (g[0] + g[2]) / 2, middle = g[1] / 2;
        m[0][r] = ends + middle;
        m[1][r] = ends - middle;
        m[2][r] = g[0];
        m[3][r] = g[2];
      }
      for (int i = 0; i < 4; ++i)
        put_weights<O>(packed + i * conv_size + (i == 3 ? cond_size : 0), c, [&](int r) { return m[i][r]; });
    }
  }
  if (!plan.cond_steps) return;
  for (int64_t k = 0; k < p.cond_channels; ++k)
    put_weights<O>(cond_panel, k, [&](int r) { return cond[r] ? cond[r][k] : T(0); });
}

template <class O>
void wn_layer_pack(const WnLayerParams<typename O::value>& p, int64_t begin, int64_t end, void* memory) {
  using T = typename O::value;
  const WnLayerPlan<O> plan(p);
  auto* packed = static_cast<typename O::element*>(memory);
  for (int64_t panel = begin; panel < end; ++panel) {
    if (panel < plan.gate_panels) {
      pack_gate_panel(p, plan, panel, packed + panel * plan.panel_steps * kRows);
      continue;
    }
    const int64_t index = panel - plan.gate_panels, first = index * kRows;
    auto* out = packed + (plan.gate_panels * plan.panel_steps + index * plan.res_skip_steps) * kRows;
    for (int64_t k = 0; k < p.gate_channels; ++k)
      put_weights<O>(out, k, [&](int r) {
        return first + r < plan.res_skip_rows ? p.res_skip_weight[(first + r) * p.gate_channels + k] : T(0);
      });
  }
}

// Returns source[start + i] + bias for 0 <= i < count, and 0 beyond the ends of source [n]; in `memory` where it must.
template <class T>
const T* padded(const T* source, int64_t start, int64_t n, T bias, int64_t count, T* memory) {
  if (start >= 0 && start + count <= n && bias == T(0)) return source + start;
  const int64_t first = min(max(-start, 0), count);
  const int64_t last = max(first, min(n - start, count));
  for (int64_t i = 0; i < first; ++i) memory[i] = 0;
  for (int64_t i = first; i < last; ++i) memory[i] = source[start + i] + bias;
  for (int64_t i = last; i < count; ++i) memory[i] = 0;
  return memory;
}

// Puts channel c of the four operands of minimal filtering, `size` elements apart: m2, m3, m1 and, after the
// conditioning, m4.
template <class O, class T>
inline void put_filtered(
    const WnLayerPlan<O>& plan, int64_t c, const T* d0, const T* d1, const T* d2, const T* d3,
    typename O::element* window) {
  const int64_t size = plan.conv_steps * plan.W, cond_size = 2 * plan.cond_steps * plan.W;
  auto* m2 = depth_of<O>(window, c);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = v * Vector<T>::lanes;
    const auto x1 = load(d1 + i), x2 = load(d2 + i);
    O::put(m2 + i, c, x1 + x2);
    O::put(m2 + size + i, c, x2 - x1);
    O::put(m2 + 2 * size + i, c, load(d0 + i) - x2);
    O::put(m2 + 3 * size + cond_size + i, c, load(d3 + i) - x1);
  }
}

template <class O>
void gather_unit(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t unit,
    typename O::element* window) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  const T* h = p.h + b * p.h_batch;
  const T* input_bias = p.input_bias ? p.input_bias + b * p.input_bias_batch : nullptr;
  const int64_t d = p.dilation, t = plan.slice_time(unit, 0), start = t - p.left_padding;
  alignas(64) T memory[4][W];
  for (int64_t c = 0; c < p.channels; ++c) {
    const T bias = input_bias ? input_bias[c] : T(0);
    const T* taps[4];
    const int count = plan.filtered ? 4 : p.kernel_size;
    if (plan.filtered) {
      for (int i = 0; i < count; ++i) taps[i] = padded(h + c * p.time, start + i * d, p.time, bias, W, memory[i]);
      put_filtered(plan, c, taps[0], taps[1], taps[2], taps[3], window);
    } else {
      for (int i = 0; i < count; ++i)
        put_row<O>(window, c * count + i, padded(h + c * p.time, start + i * d, p.time, bias, W, memory[0]));
    }
  }
  if (!plan.cond_steps) return;
  auto* out = window + (plan.filtered ? 3 : 1) * plan.conv_steps * W;
  const T* cond = p.cond + b * p.cond_batch;
  for (int64_t s = 0; s < plan.unit_slices; ++s, out += plan.cond_steps * W)
    for (int64_t c = 0; c < p.cond_channels; ++c)
      put_row<O>(out, c, padded(cond + c * p.time, plan.slice_time(unit, s), p.time, T(0), W, memory[0]));
}

// The same for pairs of steps that lie D apart, D less than a slice.
template <int D, class O>
void gather_split_unit(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t unit,
    typename O::element* window) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>, more = kSplitBlock<D, T>;
  const T* h = p.h + b * p.h_batch;
  const T* input_bias = p.input_bias ? p.input_bias + b * p.input_bias_batch : nullptr;
  const int64_t t = plan.slice_time(unit, 0);
  alignas(64) T memory[2 * (W + more)], even[W + more], odd[W + more];
  for (int64_t c = 0; c < p.channels; ++c) {
    const T bias = input_bias ? input_bias[c] : T(0);
    split<D>(padded(h + c * p.time, t - p.left_padding, p.time, bias, 2 * (W + more), memory), W + more, even, odd);
    put_filtered(plan, c, even, odd, even + D, odd + D, window);
  }
  if (!plan.cond_steps) return;
  auto* out = window + 3 * plan.conv_steps * W;
  const T* cond = p.cond + b * p.cond_batch;
  for (int64_t c = 0; c < p.cond_channels; ++c) {
    split<D>(padded(cond + c * p.time, t, p.time, T(0), 2 * W, memory), W, even, odd);
    put_row<O>(out, c, even);
    put_row<O>(out + plan.cond_steps * W, c, odd);
  }
}

// base [2G]: the part of u that is constant in time.
template <class T>
void gather_base(const WnLayerParams<T>& p, int64_t b, T* base) {
  const T* cond = p.cond && p.cond_time == 1 ? p.cond + b * p.cond_batch : nullptr;
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

// The first product of a unit for one panel, without the base: out [unit_slices, kRows, kColumns].
template <class O>
void multiply_unit(
    const WnLayerPlan<O>& plan, const typename O::element* panel, const typename O::element* window, bool second_slice,
    typename O::value* out) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>, size = kRows * W;
  if (!plan.filtered) {
    Tile<T> sum = {};
    multiply<O>(panel, window, plan.panel_steps, sum);
    store_tile<T>(sum, out);
    return;
  }
  const int64_t conv = plan.conv_steps, cond = plan.cond_steps;
  {
    Tile<T> sum = {};
    multiply<O>(panel, window, conv, sum);
    store_tile<T>(sum, out);
  }
  {
    Tile<T> sum = {};
    multiply<O>(panel + conv * kRows, window + conv * W, conv, sum);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        T* at = out + r * W + v * Vector<T>::lanes;
        const auto m2 = load(at);
        store(at, m2 + sum[r][v]);
        store(at + size, m2 - sum[r][v]);
      }
  }
  panel += 2 * conv * kRows;
  window += 2 * conv * W;
  for (int64_t s = 0; s < 1 + second_slice; ++s) {  // [m1, cond], then [cond, m4]
    Tile<T> sum;
    load_tile<T>(out + s * size, sum);
    multiply<O>(panel, window, conv + cond, sum);
    store_tile<T>(sum, out + s * size);
    panel += conv * kRows;
    window += (conv + cond) * W;
  }
}

// out [2, kRows, kColumns] from pairs of steps D apart to the order of time.
template <int D, class T>
void join_slices(T* out) {
  constexpr int64_t W = kColumns<T>, size = kRows * W;
  alignas(64) T row[2 * W];
  for (int r = 0; r < kRows; ++r) {
    join<D>(out + r * W, out + size + r * W, W, row);
    for (int64_t i = 0; i < W; ++i) out[r * W + i] = row[i];
    for (int64_t i = 0; i < W; ++i) out[size + r * W + i] = row[W + i];
  }
}

// Calls f with the dilation as a constant where it is one of those below a slice, and returns whether it did.
template <int64_t W, int D = 1, class F>
inline bool with_small_dilation(int64_t dilation, const F& f) {
  if constexpr (D < W) {
    if (dilation != D) return with_small_dilation<W, 2 * D>(dilation, f);
    f(std::integral_constant<int, D>());
    return true;
  }
  return false;
}

// Computes the input u of the gate and hands it on: finish(unit, slice, pair, tanh_in, sigmoid_in), rows of kColumns.
template <class O, class F>
void gate_product(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t first_unit, int64_t units,
    const typename O::element* packed, typename O::element* window, const typename O::value* base, const F& finish) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  alignas(64) T out[2 * kRows * W];
  for (int64_t i = 0; i < units; ++i) {
    auto* mine = window + i * plan.window_steps * W;
    const bool split_unit = plan.filtered && with_small_dilation<W>(plan.dilation, [&](auto d) {
                              gather_split_unit<d.value>(p, plan, b, first_unit + i, mine);
                            });
    if (!split_unit) gather_unit(p, plan, b, first_unit + i, mine);
  }
  // Already projected conditioning that varies in time is added here, [2G, T].
  const T* projected =
      p.cond && !p.cond_weight && !WnLayerPlan<O>::cond_is_constant(p) ? p.cond + b * p.cond_batch : nullptr;
  for (int64_t panel = 0; panel < plan.gate_panels; ++panel) {
    const int64_t first = panel * kPairs, pairs = min(kPairs, p.gate_channels - first);
    for (int64_t i = 0; i < units; ++i) {
      const bool second_slice = plan.filtered && plan.slice_time(first_unit + i, 1) < p.time;
      multiply_unit(
          plan, packed + panel * plan.panel_steps * kRows, window + i * plan.window_steps * W,
          second_slice || plan.dilation < W, out);
      if (plan.filtered) with_small_dilation<W>(plan.dilation, [&](auto d) { join_slices<d.value>(out); });
      for (int64_t s = 0; s < 1 + second_slice; ++s) {
        const int64_t t = plan.slice_time(first_unit + i, s), valid = max(0, min(W, p.time - t));
        for (int64_t r = 0; r < pairs; ++r) {
          T* pair[2] = {out + (s * kRows + r) * W, out + (s * kRows + r + kPairs) * W};
          for (int half = 0; half < 2; ++half) {
            const int64_t row = half * p.gate_channels + first + r;
            for (int64_t j = 0; j < W; ++j) pair[half][j] += base[row];
            if (!projected) continue;
            for (int64_t j = 0; j < valid; ++j) pair[half][j] += projected[row * p.time + t + j];
          }
          finish(i, s, first + r, pair[0], pair[1]);
        }
      }
    }
  }
}

template <class O>
void res_skip_product(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t first_unit, int64_t units,
    const typename O::element* packed, const typename O::element* activations) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  alignas(64) T out[kRows * W];
  for (int64_t panel = 0; panel < plan.res_skip_panels; ++panel) {
    const int64_t first = panel * kRows, rows = min(kRows, plan.res_skip_rows - first);
    for (int64_t s = 0; s < units * plan.unit_slices; ++s) {
      const int64_t t = plan.slice_time(first_unit + s / plan.unit_slices, s % plan.unit_slices);
      const int64_t valid = min(W, p.time - t);
      if (valid <= 0) continue;
      const T* mask = p.mask ? p.mask + b * p.mask_batch + t : nullptr;
      Tile<T> sum = {};
      multiply<O>(
          packed + panel * plan.res_skip_steps * kRows, activations + s * plan.res_skip_steps * W, plan.res_skip_steps,
          sum);
      store_tile<T>(sum, out);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = first + r;
        const T* value = out + r * W;
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

template <class O>
void wn_layer(
    const WnLayerParams<typename O::value>& p, int64_t begin, int64_t end, const void* packed_memory, void* scratch) {
  using T = typename O::value;
  using Element = typename O::element;
  constexpr int64_t W = kColumns<T>;
  const WnLayerPlan<O> plan(p);
  const auto* packed = static_cast<const Element*>(packed_memory);
  auto* window = static_cast<Element*>(scratch);
  auto* activations = window + plan.tile_units * plan.window_steps * W;
  auto* base = reinterpret_cast<T*>(window + plan.scratch_elements());
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / plan.tiles, first = task % plan.tiles * plan.tile_units;
    const int64_t units = min(plan.tile_units, plan.units - first);
    if (task == begin || first == 0) gather_base(p, b, base);
    gate_product(
        p, plan, b, first, units, packed, window, base,
        [&](int64_t unit, int64_t slice, int64_t row, const T* tanh_in, const T* sigmoid_in) {
          alignas(64) T a[W];
          if (p.u) {
            const int64_t t = plan.slice_time(first + unit, slice), valid = min(W, p.time - t);
            T* u = p.u + (b * 2 * p.gate_channels + row) * p.time + t;
            for (int64_t i = 0; i < valid; ++i) u[i] = tanh_in[i];
            for (int64_t i = 0; i < valid; ++i) u[p.gate_channels * p.time + i] = sigmoid_in[i];
            if (plan.res_skip_rows == 0) return;
          }
          gate_row(tanh_in, sigmoid_in, a, W);
          put_row<O>(activations + (unit * plan.unit_slices + slice) * plan.res_skip_steps * W, row, a);
        });
    res_skip_product(p, plan, b, first, units, packed + plan.gate_panels * plan.panel_steps * kRows, activations);
  }
}

}  // namespace fastflow::FASTFLOW_ISA
