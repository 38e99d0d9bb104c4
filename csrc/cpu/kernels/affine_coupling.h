#pragma once

#include "../../params.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

inline float exp_any(float x) { return __builtin_expf(x); }
inline double exp_any(double x) { return __builtin_exp(x); }
inline double log_sigmoid(double x) {
  return x < 0 ? x - __builtin_log1p(__builtin_exp(x)) : -__builtin_log1p(__builtin_exp(-x));
}

// A thousandth of a model's arithmetic, so plain: one element at a time, the log-determinant in double.
template <class T>
void affine_coupling(const AffineCouplingParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.channels, c = row % p.channels;
    const T* x = p.x + b * p.x_batch + c * p.time;
    const T* shift = p.shift + b * p.shift_batch + c * p.time;
    const T* log_scale = p.log_scale ? p.log_scale + b * p.log_scale_batch + c * p.time : nullptr;
    const T* mask = p.mask ? p.mask + b * p.mask_batch : nullptr;
    T* y = p.y + row * p.time;
    double log_det = 0;
    for (int64_t t = 0; t < p.time; ++t) {
      T value = 0;
      double log_of_scale = 0;
      switch (p.form) {
        case CouplingForm::kExp:
          value = p.reverse ? (x[t] - shift[t]) * exp_any(-log_scale[t]) : exp_any(log_scale[t]) * x[t] + shift[t];
          log_of_scale = log_scale[t];
          break;
        case CouplingForm::kSigmoid: {
          const T inverse = 1 + exp_any(-(log_scale[t] + 2));  // 1 / sigmoid
          value = p.reverse ? x[t] * inverse - shift[t] : (x[t] + shift[t]) / inverse;
          log_of_scale = log_sigmoid(static_cast<double>(log_scale[t]) + 2);
          break;
        }
        case CouplingForm::kAdditive:
          value = p.reverse ? x[t] - shift[t] : x[t] + shift[t];
          break;
      }
      y[t] = mask ? value * mask[t] : value;
      log_det += mask ? log_of_scale * mask[t] : log_of_scale;
    }
    p.row_log_det[row] = p.reverse ? -log_det : log_det;
  }
}

}  // namespace fastflow::FASTFLOW_ISA
