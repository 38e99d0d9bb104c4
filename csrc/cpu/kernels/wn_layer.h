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
//
// Where the conditioning has a weight for each of P phases, a slice is frames of one phase, so that its weight is the
// same for the whole slice. The two steps of a pair are then two phases, where 2 d divides P. Such weights, 32 times
// the size of the others for WaveGlow, are read where they are.
#pragma once

#include "../../params.h"
#include "gate.h"
#include "interleave.h"
#include "product.h"
#include "wn_layer_plan.h"

namespace fastflow::FASTFLOW_ISA {

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
  const WnLayerPlan<O> plan(p);
  const int64_t elements = plan.scratch_elements() + 2 * kRows * plan.cond_steps;
  return elements * static_cast<int64_t>(sizeof(typename O::element)) +
         4 * p.gate_channels * static_cast<int64_t>(sizeof(typename O::value));
}

template <class O>
int64_t wn_layer_tiles(const WnLayerParams<typename O::value>& p) {
  return WnLayerPlan<O>(p).tiles;
}

// The row of u that is row r of a panel, or -1 where there is none: first those of tanh.
template <class T>
int64_t panel_row(const WnLayerParams<T>& p, int64_t panel, int r) {
  const int64_t pair = panel * kPairs + r % kPairs;
  return pair >= p.gate_channels ? -1 : r < kPairs ? pair : p.gate_channels + pair;
}

// Weights of a panel of the first product: conv, or filtered m2, m3, m1, m4; then cond.
template <class O>
void pack_gate_panel(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t panel, typename O::element* packed) {
  using T = typename O::value;
  const T *conv[kRows], *cond[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = panel_row(p, panel, r);
    conv[r] = row < 0 ? nullptr : p.conv_weight + row * p.channels * p.kernel_size;
    cond[r] = row < 0 || !plan.cond_steps ? nullptr : p.cond_weight + row * p.cond_channels;
  }
  const int64_t conv_size = plan.conv_steps * kRows;
  if (!plan.filtered) {
    for (int64_t k = 0; k < p.channels * p.kernel_size; ++k)
      put_weights<O>(packed, k, [&](int r) { return conv[r] ? conv[r][k] : T(0); });
  } else {
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
      for (int i = 0; i < 4; ++i) put_weights<O>(packed + i * conv_size, c, [&](int r) { return m[i][r]; });
    }
  }
  if (!plan.cond_steps || !plan.cond_packed) return;
  packed += (plan.filtered ? 4 : 1) * conv_size;
  for (int64_t k = 0; k < p.cond_channels; ++k)
    put_weights<O>(packed, k, [&](int r) { return cond[r] ? cond[r][k] : T(0); });
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

// Puts channel c of the four operands of minimal filtering, `size` elements apart: m2, m3, m1, m4.
template <class O, class T>
inline void put_filtered(
    const WnLayerPlan<O>& plan, int64_t c, const T* d0, const T* d1, const T* d2, const T* d3,
    typename O::element* window) {
  const int64_t size = plan.conv_steps * plan.W;
  auto* m2 = depth_of<O>(window, c);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = v * Vector<T>::lanes;
    const auto x1 = load(d1 + i), x2 = load(d2 + i);
    O::put(m2 + i, c, x1 + x2);
    O::put(m2 + size + i, c, x2 - x1);
    O::put(m2 + 2 * size + i, c, load(d0 + i) - x2);
    O::put(m2 + 3 * size + i, c, load(d3 + i) - x1);
  }
}

// Gathers the conditioning of a unit, behind the operands of the convolution.
template <class O>
void gather_cond(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t group, int64_t unit,
    typename O::element* window) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  if (!plan.cond_steps) return;
  alignas(64) T memory[W];
  const T* cond = p.cond + b * p.cond_batch;
  auto* out = window + (plan.filtered ? 4 : 1) * plan.conv_steps * W;
  for (int64_t s = 0; s < plan.cond_slices; ++s, out += plan.cond_steps * W)
    for (int64_t c = 0; c < p.cond_channels; ++c)
      put_row<O>(out, c, padded(cond + c * p.frames, plan.place(group, unit, s).frame, p.frames, T(0), W, memory));
}

template <class O>
void gather_unit(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t group, int64_t unit,
    typename O::element* window) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  const T* input_bias = p.input_bias ? p.input_bias + b * p.input_bias_batch : nullptr;
  const Place first = plan.place(group, unit, 0);
  alignas(64) T memory[4][W];
  const int count = plan.filtered ? 4 : p.kernel_size;
  const auto tap = [&](const T* h, T bias, int i, T* padding) {
    const Place from = first.after(i * p.dilation - p.left_padding, p.phases);
    return padded(h + from.phase * p.frames, from.frame, p.frames, bias, W, padding);
  };
  for (int64_t c = 0; c < p.channels; ++c) {
    const T bias = input_bias ? input_bias[c] : T(0);
    const T* h = p.h + b * p.h_batch + c * p.time;
    if (plan.filtered) {
      const T* taps[4];
      for (int i = 0; i < count; ++i) taps[i] = tap(h, bias, i, memory[i]);
      put_filtered(plan, c, taps[0], taps[1], taps[2], taps[3], window);
    } else {
      for (int i = 0; i < count; ++i) put_row<O>(window, c * count + i, tap(h, bias, i, memory[0]));
    }
  }
  gather_cond(p, plan, b, group, unit, window);
}

// The same for pairs of frames that lie D apart, D less than a slice.
template <int D, class O>
void gather_split_unit(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, int64_t group, int64_t unit,
    typename O::element* window) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>, more = kSplitBlock<D, T>;
  const T* input_bias = p.input_bias ? p.input_bias + b * p.input_bias_batch : nullptr;
  const Place first = plan.place(group, unit, 0), from = first.after(-p.left_padding, p.phases);
  alignas(64) T memory[2 * (W + more)], even[W + more], odd[W + more];
  for (int64_t c = 0; c < p.channels; ++c) {
    const T bias = input_bias ? input_bias[c] : T(0);
    const T* h = p.h + b * p.h_batch + c * p.time + from.phase * p.frames;
    split<D>(padded(h, from.frame, p.frames, bias, 2 * (W + more), memory), W + more, even, odd);
    put_filtered(plan, c, even, odd, even + D, odd + D, window);
  }
  if (!plan.cond_steps) return;
  auto* out = window + 4 * plan.conv_steps * W;
  const T* cond = p.cond + b * p.cond_batch;
  for (int64_t c = 0; c < p.cond_channels; ++c) {
    split<D>(padded(cond + c * p.frames, first.frame, p.frames, T(0), 2 * W, memory), W, even, odd);
    put_row<O>(out, c, even);
    put_row<O>(out + plan.cond_steps * W, c, odd);
  }
}

// base [2G]: the part of u that is constant over the frames of a phase.
template <class T>
void gather_base(const WnLayerParams<T>& p, int64_t b, int64_t phase, T* base) {
  const T* cond = p.cond && p.cond_time == 1 && p.phases == 1 ? p.cond + b * p.cond_batch : nullptr;
  const T* cond_bias = p.cond_bias ? p.cond_bias + phase * p.cond_bias_phase : nullptr;
  for (int64_t row = 0; row < 2 * p.gate_channels; ++row) {
    T sum = 0;
    if (cond && p.cond_weight) {
      for (int64_t c = 0; c < p.cond_channels; ++c) sum += p.cond_weight[row * p.cond_channels + c] * cond[c];
    } else if (cond) {
      sum = cond[row];
    }
    base[row] = sum + (p.conv_bias ? p.conv_bias[row] : T(0)) + (cond_bias ? cond_bias[row] : T(0));
  }
}

// Rows of the conditioning's weight for a panel and a phase; in `memory` [kRows, cond_steps] where they are not as the
// products want them.
template <class O>
void cond_rows(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t panel, int64_t phase,
    typename O::element* memory, const typename O::element* (&rows)[kRows]) {
  for (int r = 0; r < kRows; ++r, memory += plan.cond_steps) {
    const int64_t row = panel_row(p, panel, r), start = (phase * 2 * p.gate_channels + row) * p.cond_channels;
    rows[r] = memory;
    if (row < 0) {
      for (int64_t k = 0; k < plan.cond_steps; ++k) memory[k] = 0;
    } else if constexpr (O::depth == 1) {
      if (!p.cond_weight_bf16) {
        rows[r] = p.cond_weight + start;
        continue;
      }
      for (int64_t k = 0; k < p.cond_channels; ++k) memory[k] = widen(bfloat16{p.cond_weight_bf16[start + k]});
    } else {
      memory[plan.cond_steps - 1] = 0;  // an odd depth leaves half of the last pair
      __builtin_memcpy(memory, p.cond_weight_bf16 + start, p.cond_channels * sizeof(uint16_t));
    }
  }
}

// The first product of a unit for one panel, without the base: out [unit_slices, kRows, kColumns]. `rows` are those of
// each slice, where the conditioning's weights were not packed. Only the first V vectors of each slice are made.
template <int V, class O>
void multiply_unit(
    const WnLayerPlan<O>& plan, const typename O::element* panel, const typename O::element* const (&rows)[2][kRows],
    const typename O::element* window, bool second_slice, typename O::value* out) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>, size = kRows * W;
  const int64_t conv = plan.conv_steps, cond = plan.cond_steps;
  if (plan.filtered) {
    {
      Tile<T, V> sum = {};
      multiply<O, V>(panel, window, conv, sum);
      store_tile<T, V>(sum, out);
    }
    Tile<T, V> sum = {};
    multiply<O, V>(panel + conv * kRows, window + conv * W, conv, sum);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) {
        T* at = out + r * W + v * Vector<T>::lanes;
        const auto m2 = load(at);
        store(at, m2 + sum[r][v]);
        store(at + size, m2 - sum[r][v]);
      }
    panel += 2 * conv * kRows;
    window += 2 * conv * W;
  }
  const auto* cond_panel = panel + plan.unit_slices * conv * kRows;
  const auto* cond_window = window + plan.unit_slices * conv * W;
  for (int64_t s = 0; s < 1 + second_slice; ++s) {  // the convolution's product, or m1 and m4; and the conditioning's
    Tile<T, V> sum = {};
    if (plan.filtered) load_tile<T, V>(out + s * size, sum);
    multiply<O, V>(panel + s * conv * kRows, window + s * conv * W, conv, sum);
    const auto* slice = cond_window + (plan.cond_slices == 2 ? s * cond * W : 0);
    if (plan.cond_packed) {
      multiply<O, V>(cond_panel, slice, cond, sum);
    } else {
      multiply_rows<O, V>(rows[s], slice, cond, sum);
    }
    store_tile<T, V>(sum, out + s * size);
  }
}

// out [2, kRows, kColumns] from pairs of frames D apart to the order of time.
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

// Calls f with the shift as a constant where it is one of those below a slice, and returns whether it did.
template <int64_t W, int D = 1, class F>
inline bool with_small_shift(int64_t shift, const F& f) {
  if constexpr (D < W) {
    if (shift != D) return with_small_shift<W, 2 * D>(shift, f);
    f(std::integral_constant<int, D>());
    return true;
  }
  return false;
}

// Some units of a group.
struct Units {
  int64_t group, first, count;
};

// Computes the input u of the gate and hands it on: finish(unit, slice, pair, tanh_in, sigmoid_in), rows of kColumns.
template <class O, class F>
void gate_product(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, Units units,
    const typename O::element* packed, typename O::element* window, typename O::element* weights,
    const typename O::value* base, const F& finish) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  alignas(64) T out[2 * kRows * W] = {};
  const bool splits = plan.filtered && !plan.pairs_phases && plan.shift < W;
  for (int64_t i = 0; i < units.count; ++i) {
    auto* mine = window + i * plan.window_steps * W;
    if (splits) {
      with_small_shift<W>(plan.shift, [&](auto shift) {
        gather_split_unit<shift.value>(p, plan, b, units.group, units.first + i, mine);
      });
    } else {
      gather_unit(p, plan, b, units.group, units.first + i, mine);
    }
  }
  // Already projected conditioning that varies in time is added here, [2G, T].
  const bool is_projected = p.cond && !p.cond_weight && !p.cond_weight_bf16 && !plan.cond_is_constant(p);
  const T* projected = is_projected ? p.cond + b * p.cond_batch : nullptr;
  const typename O::element* rows[2][kRows] = {};
  for (int64_t panel = 0; panel < plan.gate_panels; ++panel) {
    const int64_t first = panel * kPairs, pairs = min(kPairs, p.gate_channels - first);
    if (!plan.cond_packed && plan.cond_steps)
      for (int64_t s = 0; s < plan.unit_slices; ++s)
        cond_rows(p, plan, panel, plan.place(units.group, 0, s).phase, weights + s * kRows * plan.cond_steps, rows[s]);
    for (int64_t i = 0; i < units.count; ++i) {
      const bool second_slice = plan.filtered && plan.place(units.group, units.first + i, 1).frame < p.frames;
      const auto* unit_panel = packed + panel * plan.panel_steps * kRows;
      const auto* unit_window = window + i * plan.window_steps * W;
      if (plan.half_is_enough(units.group, units.first + i)) {
        multiply_unit<1>(plan, unit_panel, rows, unit_window, second_slice || splits, out);
      } else {
        multiply_unit<kVectors>(plan, unit_panel, rows, unit_window, second_slice || splits, out);
      }
      if (splits) with_small_shift<W>(plan.shift, [&](auto shift) { join_slices<shift.value>(out); });
      for (int64_t s = 0; s < 1 + second_slice; ++s) {
        const Place place = plan.place(units.group, units.first + i, s);
        const int64_t valid = max(0, min(W, p.frames - place.frame));
        const T* added = base + (plan.pairs_phases ? s * 2 * p.gate_channels : 0);
        for (int64_t r = 0; r < pairs; ++r) {
          T* pair[2] = {out + (s * kRows + r) * W, out + (s * kRows + r + kPairs) * W};
          for (int half = 0; half < 2; ++half) {
            const int64_t row = half * p.gate_channels + first + r;
            for (int64_t j = 0; j < W; ++j) pair[half][j] += added[row];
            if (!projected) continue;
            for (int64_t j = 0; j < valid; ++j) pair[half][j] += projected[row * p.time + place.frame + j];
          }
          finish(i, s, first + r, pair[0], pair[1]);
        }
      }
    }
  }
}

template <class O>
void res_skip_product(
    const WnLayerParams<typename O::value>& p, const WnLayerPlan<O>& plan, int64_t b, Units units,
    const typename O::element* packed, const typename O::element* activations) {
  using T = typename O::value;
  constexpr int64_t W = kColumns<T>;
  alignas(64) T out[kRows * W];
  for (int64_t panel = 0; panel < plan.res_skip_panels; ++panel) {
    const int64_t first = panel * kRows, rows = min(kRows, plan.res_skip_rows - first);
    for (int64_t s = 0; s < units.count * plan.unit_slices; ++s) {
      const Place place = plan.place(units.group, units.first + s / plan.unit_slices, s % plan.unit_slices);
      const int64_t t = place.offset(p.frames), valid = min(W, p.frames - place.frame);
      if (valid <= 0) continue;
      const T* mask = p.mask ? p.mask + b * p.mask_batch + t : nullptr;
      const auto* row_panel = packed + panel * plan.res_skip_steps * kRows;
      const auto* slice = activations + s * plan.res_skip_steps * W;
      if (valid <= Vector<T>::lanes) {
        Tile<T, 1> sum = {};
        multiply<O, 1>(row_panel, slice, plan.res_skip_steps, sum);
        store_tile<T, 1>(sum, out);
      } else {
        Tile<T> sum = {};
        multiply<O>(row_panel, slice, plan.res_skip_steps, sum);
        store_tile<T, kVectors>(sum, out);
      }
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
  auto* weights = activations + plan.tile_units * plan.unit_slices * plan.res_skip_steps * W;
  auto* base = reinterpret_cast<T*>(weights + 2 * kRows * plan.cond_steps);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / plan.tiles, tile = task % plan.tiles;
    const int64_t group = tile / plan.group_tiles, first = tile % plan.group_tiles * plan.tile_units;
    const Units units = {group, first, min(plan.tile_units, plan.group_units - first)};
    if (task == begin || first == 0)
      for (int64_t s = 0; s < 1 + plan.pairs_phases; ++s)
        gather_base(p, b, plan.place(group, 0, s).phase, base + s * 2 * p.gate_channels);
    gate_product(
        p, plan, b, units, packed, window, weights, base,
        [&](int64_t unit, int64_t slice, int64_t row, const T* tanh_in, const T* sigmoid_in) {
          alignas(64) T a[W];
          if (p.u) {
            const Place place = plan.place(group, first + unit, slice);
            const int64_t valid = min(W, p.frames - place.frame);
            T* u = p.u + (b * 2 * p.gate_channels + row) * p.time + place.offset(p.frames);
            for (int64_t i = 0; i < valid; ++i) u[i] = tanh_in[i];
            for (int64_t i = 0; i < valid; ++i) u[p.gate_channels * p.time + i] = sigmoid_in[i];
            if (plan.res_skip_rows == 0) return;
          }
          gate_row(tanh_in, sigmoid_in, a, W);
          put_row<O>(activations + (unit * plan.unit_slices + slice) * plan.res_skip_steps * W, row, a);
        });
    res_skip_product(p, plan, b, units, packed + plan.gate_panels * plan.panel_steps * kRows, activations);
  }
}

}  // namespace fastflow::FASTFLOW_ISA
