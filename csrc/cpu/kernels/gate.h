#pragma once

#include "../../params.h"
#include "../bfloat16.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
void gate_row(const T* tanh_in, const T* sigmoid_in, T* out, int64_t n) {
  for (int64_t t = 0; t < n; ++t)
    out[t] = narrow<T>(tanh_value(widen(tanh_in[t])) * sigmoid_value(widen(sigmoid_in[t])));
}

template <class T>
void gate(const GateParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.channels, g = row % p.channels;
    const T* x = p.x + b * p.x_batch + g * p.time;
    gate_row(x, x + p.channels * p.time, p.y + row * p.time, p.time);
  }
}

template <class T>
void gate_backward(const GateBackwardParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.channels, g = row % p.channels, half = p.channels * p.time;
    const T* x = p.x + b * p.x_batch + g * p.time;
    const T* grad = p.grad + b * p.grad_batch + g * p.time;
    T* grad_x = p.grad_x + (b * 2 * p.channels + g) * p.time;
    for (int64_t t = 0; t < p.time; ++t) {
      const T tanh = tanh_value(x[t]), sigmoid = sigmoid_value(x[half + t]);
      grad_x[t] = grad[t] * sigmoid * (1 - tanh * tanh);
      grad_x[half + t] = grad[t] * tanh * sigmoid * (1 - sigmoid);
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
