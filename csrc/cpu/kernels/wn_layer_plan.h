// How a WN layer is shared out into tiles of time, and where their slices lie.
//
// A slice is kColumns frames of one phase. With one phase, as always but where the conditioning has a weight for each
// of several, frames are steps.
#pragma once

#include "../../params.h"
#include "product.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int kPairs = kRows / 2;

// Frames of a phase, from `frame` on: step frame * P + phase and every P-th after it.
struct Place {
  int64_t phase, frame;

  // The same, some steps later (or, where negative, before).
  Place after(int64_t steps, int64_t phases) const {
    const int64_t step = phase + steps;
    const int64_t carry = (step < 0 ? step - phases + 1 : step) / phases;
    return {step - carry * phases, frame + carry};
  }
  int64_t offset(int64_t frames) const { return phase * frames + frame; }  // in a row [P, F]
};

// O says what the products multiply: Plain<T>, or Bf16Pairs.
template <class O>
struct WnLayerPlan {
  using T = typename O::value;
  static constexpr int64_t W = kColumns<T>;

  int64_t phases, frames, dilation;
  // Minimal filtering takes slices in pairs, one dilation apart: of two phases, or of one, `shift` frames apart.
  bool filtered, pairs_phases;
  int64_t shift;
  int64_t residual_rows, res_skip_rows;  // R, R + S
  int64_t gate_panels, res_skip_panels;
  // Steps of the products: over C * k or (filtered) C; over the conditioning; over G.
  int64_t conv_steps, cond_steps, res_skip_steps;
  bool cond_packed;  // with the other weights of a panel
  // A unit is one slice, or a pair of them; two phases share the conditioning of their frames.
  int64_t unit_slices, cond_slices, panel_steps, window_steps;
  int64_t group_units, tile_units, group_tiles, tiles;  // a group is a phase or a pair; tiles of a batch entry

  explicit WnLayerPlan(const WnLayerParams<T>& p) : phases(p.phases), frames(p.frames), dilation(p.dilation) {
    pairs_phases = p.kernel_size == 3 && phases % (2 * dilation) == 0;
    shift = dilation / phases;
    // Shifts that slices come out whole with; in less than a slice there is nothing to pair.
    const bool pairs_frames =
        dilation % phases == 0 && (W % max(1, shift) == 0 || shift % W == 0) && p.kernel_size == 3 && frames > W;
    filtered = pairs_phases || pairs_frames;
    residual_rows = p.h_out ? p.channels : 0;
    res_skip_rows = residual_rows + p.skip_channels;
    gate_panels = ceil_div(p.gate_channels, kPairs);
    res_skip_panels = ceil_div(res_skip_rows, kRows);
    conv_steps = steps<O>(filtered ? p.channels : p.channels * p.kernel_size);
    const bool cond_varies = (p.cond_weight || p.cond_weight_bf16) && !cond_is_constant(p);
    cond_steps = cond_varies ? steps<O>(p.cond_channels) : 0;
    cond_packed = phases == 1;
    res_skip_steps = steps<O>(p.gate_channels);
    unit_slices = filtered ? 2 : 1;
    cond_slices = pairs_phases ? 1 : unit_slices;
    panel_steps = (filtered ? 4 : 1) * conv_steps + (cond_packed ? cond_steps : 0);
    window_steps = (filtered ? 4 : 1) * conv_steps + cond_slices * cond_steps;

    if (!filtered || pairs_phases) {
      group_units = ceil_div(frames, W);
    } else if (shift < W) {
      group_units = ceil_div(frames, 2 * W);
    } else {
      group_units = (frames / (2 * shift)) * (shift / W) + ceil_div(min(frames % (2 * shift), shift), W);
    }
    const int64_t groups = pairs_phases ? phases / 2 : phases;
    // Window and activations of a tile should stay in half of a second-level cache of 1 MB. Wider tiles read the
    // weights less often, which no longer matters beyond 8 slices; about 16 tiles share out well among threads.
    const int64_t row_bytes = W * static_cast<int64_t>(sizeof(typename O::element));
    const int64_t unit_bytes = (window_steps + unit_slices * res_skip_steps) * row_bytes;
    const int64_t most = min(8 / unit_slices, (int64_t{512} << 10) / max(1, unit_bytes));
    tile_units = max(1, min(most, ceil_div(groups * group_units, 16)));
    group_tiles = ceil_div(group_units, tile_units);
    tile_units = ceil_div(group_units, max(1, group_tiles));
    tiles = groups * group_tiles;
  }

  static bool cond_is_constant(const WnLayerParams<T>& p) { return p.cond && p.cond_time == 1 && p.phases == 1; }

  // Where a unit's slice of a group begins.
  Place place(int64_t group, int64_t unit, int64_t slice) const {
    if (pairs_phases) return {group / dilation * 2 * dilation + slice * dilation + group % dilation, unit * W};
    if (!filtered) return {group, unit * W};
    if (shift < W) return {group, (2 * unit + slice) * W};
    const int64_t pairs = shift / W;  // in each block of two shifts
    return {group, (unit / pairs * 2 + slice) * shift + unit % pairs * W};
  }

  // Whether all steps of a unit lie in the first vector of its slices.
  bool half_is_enough(int64_t group, int64_t unit) const {
    const bool splits = filtered && !pairs_phases && shift < W;
    return frames - place(group, unit, 0).frame <= (splits ? 2 : 1) * Vector<T>::lanes;
  }

  int64_t scratch_elements() const { return tile_units * (window_steps + unit_slices * res_skip_steps) * W; }
};

}  // namespace fastflow::FASTFLOW_ISA
