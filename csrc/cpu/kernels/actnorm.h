#pragma once

#include "../../params.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
void actnorm(const ActNormParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.channels, c = row % p.channels;
    const T* x = p.x + b * p.x_batch + c * p.time;
    T* y = p.y + row * p.time;
    const T loc = p.loc[c], scale = p.scale[c];
    if (p.reverse) {
      for (int64_t t = 0; t < p.time; ++t) y[t] = x[t] / scale - loc;
    } else {
      for (int64_t t = 0; t < p.time; ++t) y[t] = scale * (x[t] + loc);
    }
    if (p.mask) {
      const T* mask = p.mask + b * p.mask_batch;
      for (int64_t t = 0; t < p.time; ++t) y[t] *= mask[t];
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
