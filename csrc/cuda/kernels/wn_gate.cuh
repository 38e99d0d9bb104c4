// The gate of the WN kernels: tanh(u) * sigmoid(v), and its derivatives.
#pragma once

#include <arch/platform.cuh>

#include "../../params.h"

namespace fastflow {

template <class T>
struct WnGate {
  using acc_t = accumulator_t<T>;

  acc_t tanh, sigmoid;

  // In 16-bit types the hardware's approximation: its error of 2^-11 is that of rounding to float16, and an eighth of
  // bfloat16's. The sigmoid is 0.5 * tanh(0.5 * v) + 0.5.
  __device__ __forceinline__ WnGate(acc_t u, acc_t v) {
    if constexpr (sizeof(T) == 2) {
      tanh = arch::tanh_approx(u);
      sigmoid = 0.5f * arch::tanh_approx(0.5f * v) + 0.5f;
    } else {
      tanh = arch::tanh(u);
      sigmoid = acc_t(1) / (acc_t(1) + arch::exp(-v));
    }
  }

  __device__ __forceinline__ acc_t value() const { return tanh * sigmoid; }

  // Gradients of u and of v for the gradient of the value.
  __device__ __forceinline__ acc_t grad_u(acc_t grad) const { return grad * sigmoid * (acc_t(1) - tanh * tanh); }
  __device__ __forceinline__ acc_t grad_v(acc_t grad) const { return grad * tanh * sigmoid * (acc_t(1) - sigmoid); }
};

}  // namespace fastflow
