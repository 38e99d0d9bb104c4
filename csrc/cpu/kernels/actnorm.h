#pragma once

#include "../../params.h"
#include "../bfloat16.h"
#include "affine_coupling.h"
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

// parts [B, C, 2]: each row's sums for the gradients of loc and of scale.
template <class T>
void actnorm_backward(const ActNormBackwardParams<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t block = 512;
  const ActNormParams<T>& f = p.forward;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / f.channels, c = row % f.channels;
    const T* x = f.x + b * f.x_batch + c * f.time;
    const T* grad = p.grad + b * p.grad_batch + c * f.time;
    const T* mask = f.mask ? f.mask + b * f.mask_batch : nullptr;
    T* grad_x = p.grad_x + row * f.time;
    const T loc = f.loc[c], scale = f.scale[c];
    double sums[2] = {};
    for (int64_t t0 = 0; t0 < f.time; t0 += block) {
      const int64_t n = min(block, f.time - t0);
      T g[block], products[block];
      for (int64_t i = 0; i < n; ++i) g[i] = grad[t0 + i];
      if (mask)
        for (int64_t i = 0; i < n; ++i) g[i] *= mask[t0 + i];
      if (f.reverse) {
        for (int64_t i = 0; i < n; ++i) {
          grad_x[t0 + i] = g[i] / scale;
          products[i] = -(g[i] / scale) * (x[t0 + i] / scale);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) {
          grad_x[t0 + i] = g[i] * scale;
          products[i] = g[i] * (x[t0 + i] + loc);
        }
      }
      sums[0] += sum_of(g, n) * (f.reverse ? -1 : static_cast<double>(scale));
      sums[1] += sum_of(products, n);
    }
    p.parts[2 * row] = sums[0];
    p.parts[2 * row + 1] = sums[1];
  }
}

}  // namespace fastflow::FASTFLOW_ISA
