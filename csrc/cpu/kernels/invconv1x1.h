#pragma once

#include "../../params.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// Time steps per task: C rows of 512 floats stay in the first-level cache for the C <= 8 of audio flows.
constexpr int64_t kInvConvTile = 512;

template <class T>
int64_t invconv1x1_tiles(const InvConv1x1Params<T>& p) {
  return ceil_div(p.time, kInvConvTile);
}

template <class T>
void invconv1x1(const InvConv1x1Params<T>& p, int64_t begin, int64_t end) {
  const int64_t tiles = invconv1x1_tiles(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / tiles, t0 = task % tiles * kInvConvTile;
    const int64_t n = min(kInvConvTile, p.time - t0);
    const T* x = p.x + b * p.x_batch + t0;
    T* y = p.y + b * p.channels * p.time + t0;
    for (int64_t i = 0; i < p.channels; ++i) {
      T sum[kInvConvTile] = {};
      for (int64_t j = 0; j < p.channels; ++j) {
        const T w = p.weight[i * p.channels + j];
        const T* row = x + j * p.time;
        for (int64_t t = 0; t < n; ++t) sum[t] += w * row[t];
      }
      T* out = y + i * p.time;
      if (p.mask) {
        const T* mask = p.mask + b * p.mask_batch + t0;
        for (int64_t t = 0; t < n; ++t) out[t] = sum[t] * mask[t];
      } else {
        for (int64_t t = 0; t < n; ++t) out[t] = sum[t];
      }
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
