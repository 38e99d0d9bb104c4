// What lies between the gated stack of one flow and the next, tile by tile: `hidden` is read once, and nothing between
// it and y is written to memory.
#pragma once

#include "affine_coupling.h"
#include "vectors.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
int64_t flow_step_tiles(const FlowStepParams<T, T>& p) {
  return ceil_div(p.time, kColumns<accumulator_t<T>>);
}

// A thread's scratch: the end convolution's rows and z, for one tile.
template <class T>
int64_t flow_step_scratch_size(const FlowStepParams<T, T>& p) {
  return 2 * p.channels * kColumns<accumulator_t<T>>;
}

template <class T>
void flow_step(
    const FlowStepParams<T, T>& p, int64_t begin, int64_t end, const accumulator_t<T>* end_weight,
    const accumulator_t<T>* weight, accumulator_t<T>* scratch) {
  using A = accumulator_t<T>;
  constexpr int64_t columns = kColumns<A>;
  const int64_t tiles = flow_step_tiles(p), half = p.channels / 2, multiplied = p.channels - p.n_early;
  const int64_t rows = p.form == CouplingForm::kAdditive ? half : p.channels;
  const int64_t moved = p.transform_first ? 0 : half;
  A *out = scratch, *z = scratch + p.channels * columns;  // [rows, columns], [C, columns]
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / tiles, t0 = task % tiles * columns, n = min(columns, p.time - t0);
    small_product(
        end_weight, p.hidden + b * p.hidden_batch + t0, p.time, rows, p.hidden_channels, n,
        [&](int64_t row, int v, Wide<T> sum) {
          if (p.end_bias) sum += widen(p.end_bias[row]);
          store_wide<A>(out + row * columns + v * kLanes<T>, sum, columns);
        });
    for (int64_t c = 0; c < p.channels; ++c)
      for (int v = 0; v < kVectors; ++v)
        store_wide<A>(
            z + c * columns + v * kLanes<T>,
            load_wide(p.x + b * p.x_batch + c * p.time + t0 + v * kLanes<T>, n - v * kLanes<T>), columns);
    with_coupling(p.form, p.reverse, [&]<CouplingForm FORM, bool REVERSE>() {
      double log_det = 0;
      for (int64_t c = 0; c < half; ++c) {
        A *shift = out + c * columns, *log_scale = out + (half + c) * columns, *x = z + (moved + c) * columns;
        for (int64_t i = 0; i < columns; ++i) {
          const A s = FORM == CouplingForm::kAdditive ? A(0) : log_scale[i];
          x[i] = coupled<FORM, REVERSE>(x[i], shift[i], s);
        }
        if (!p.parts || FORM == CouplingForm::kAdditive) continue;
        for (int64_t i = 0; i < columns; ++i) log_scale[i] = log_of_scale<FORM>(log_scale[i]);
        log_det += sum_of(log_scale, n);
      }
      if (p.parts) p.parts[task] = REVERSE ? -log_det : log_det;
    });

    const auto write = [&](int64_t row, int v, Wide<T> value) {
      const int64_t left = n - v * kLanes<T>;
      T* y = p.y + (b * (p.early_channels + p.channels) + row) * p.time + t0;
      if (left > 0) store_wide(y + v * kLanes<T>, value, left);
    };
    for (int64_t c = 0; c < p.early_channels; ++c)
      for (int v = 0; v < kVectors; ++v)
        write(c, v, load_wide(p.early + b * p.early_batch + c * p.time + t0 + v * kLanes<T>, n - v * kLanes<T>));
    const int64_t copied = weight ? p.n_early : p.channels;
    for (int64_t c = 0; c < copied; ++c)
      for (int v = 0; v < kVectors; ++v) write(p.early_channels + c, v, load_wide<A>(z + c * columns + v * kLanes<T>));
    if (weight) {
      small_product(
          weight, z + copied * columns, columns, multiplied, multiplied, columns,
          [&](int64_t row, int v, Wide<T> sum) { write(p.early_channels + copied + row, v, sum); });
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
