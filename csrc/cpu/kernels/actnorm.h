#pragma once

#include "../../params.h"
#include "../bfloat16.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
void actnorm(const ActNormParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.channels, c = row % p.channels;
    const T* x = p.x + b * p.x_batch + c * p.time;
    T* y = p.y + row * p.time;
    const auto each = [&](const auto& f) {
      if (p.mask) {
        const T* mask = p.mask + b * p.mask_batch;
        for (int64_t t = 0; t < p.time; ++t) y[t] = narrow<T>(f(widen(x[t])) * widen(mask[t]));
      } else {
        for (int64_t t = 0; t < p.time; ++t) y[t] = narrow<T>(f(widen(x[t])));
      }
    };
    const accumulator_t<T> loc = widen(p.loc[c]), scale = widen(p.scale[c]);
    if (p.reverse) {
      each([=](accumulator_t<T> value) { return value / scale - loc; });
    } else {
      each([=](accumulator_t<T> value) { return scale * (value + loc); });
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
