#pragma once

#include "../../params.h"
#include "../bfloat16.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

// exp(x) for any x, within 2 units in the last place: infinity above 88.7, and below -87 the denormal numbers, to 0.
inline float exp_value(float x) {
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;  // a NaN fails both comparisons and stays
  // As exp_negative, but the power of two may lie beyond the normal range: it is multiplied in two halves.
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = __builtin_bit_cast(int32_t, shifted) - __builtin_bit_cast(int32_t, 12582912.0f);
  const int32_t first = exponent >> 1, second = exponent - first;
  const auto power = [](int32_t e) {
    return __builtin_bit_cast(float, static_cast<int32_t>(static_cast<uint32_t>(e + 127) << 23));
  };
  return p * power(first) * power(second);
}

// log(sigmoid(x)) = min(x, 0) - log(1 + e), e = exp(-|x|), and log(1 + e) = 2 artanh(z), z = e / (2 + e) <= 1/3: its
// series to z^15 leaves less than 2e-9 of it.
inline float log_sigmoid(float x) {
  const float e = exp_negative(-__builtin_fabsf(x));
  const float z = e / (2.0f + e), zz = z * z;
  float p = 1.0f / 15.0f;
  p = p * zz + 1.0f / 13.0f;
  p = p * zz + 1.0f / 11.0f;
  p = p * zz + 1.0f / 9.0f;
  p = p * zz + 1.0f / 7.0f;
  p = p * zz + 1.0f / 5.0f;
  p = p * zz + 1.0f / 3.0f;
  p = p * zz + 1.0f;
  return (x < 0.0f ? x : 0.0f) - 2.0f * z * p;
}

// float64 is for checking, not for speed: the C library's functions.
inline double exp_value(double x) { return __builtin_exp(x); }
inline double log_sigmoid(double x) {
  return x < 0 ? x - __builtin_log1p(__builtin_exp(x)) : -__builtin_log1p(__builtin_exp(-x));
}

// The coupling itself. A is the type to compute in.
template <CouplingForm FORM, bool REVERSE, class A>
inline A coupled(A x, A shift, A log_scale) {
  if constexpr (FORM == CouplingForm::kAdditive) {
    return REVERSE ? x - shift : x + shift;
  } else if constexpr (FORM == CouplingForm::kExp) {
    return REVERSE ? (x - shift) * exp_value(-log_scale) : exp_value(log_scale) * x + shift;
  } else {
    const A inverse = 1 + exp_value(-(log_scale + 2));  // 1 / sigmoid
    return REVERSE ? x * inverse - shift : (x + shift) / inverse;
  }
}

// The logarithm of what `coupled` multiplies by, forward.
template <CouplingForm FORM, class A>
inline A log_of_scale(A log_scale) {
  return FORM == CouplingForm::kAdditive ? A(0) : FORM == CouplingForm::kExp ? log_scale : log_sigmoid(log_scale + 2);
}

// Calls f.template operator()<FORM, REVERSE>().
template <class F>
void with_coupling(CouplingForm form, bool reverse, const F& f) {
  const auto with_form = [&]<CouplingForm FORM>() {
    reverse ? f.template operator()<FORM, true>() : f.template operator()<FORM, false>();
  };
  switch (form) {
    case CouplingForm::kExp:
      return with_form.template operator()<CouplingForm::kExp>();
    case CouplingForm::kSigmoid:
      return with_form.template operator()<CouplingForm::kSigmoid>();
    case CouplingForm::kAdditive:
      return with_form.template operator()<CouplingForm::kAdditive>();
  }
}

// In double, as vector code.
template <class A>
double sum_of(const A* values, int64_t n) {
  using Sums = Vector<double>::type;
  constexpr int lanes = Vector<double>::lanes, chains = 4;  // additions under way at once
  typedef A Part __attribute__((vector_size(lanes * sizeof(A))));
  Sums sums[chains] = {};
  int64_t t = 0;
  for (; t + chains * lanes <= n; t += chains * lanes) {
    for (int i = 0; i < chains; ++i) {
      Part part;
      __builtin_memcpy(&part, values + t + i * lanes, sizeof part);
      sums[i] += __builtin_convertvector(part, Sums);
    }
  }
  double sum = 0;
  for (const Sums& each : sums)
    for (int i = 0; i < lanes; ++i) sum += each[i];
  for (; t < n; ++t) sum += static_cast<double>(values[t]);
  return sum;
}

constexpr int64_t kCouplingBlock = 512;  // steps whose log scales wait in the first-level cache for their sum

template <CouplingForm FORM, bool REVERSE, bool MASKED, class T>
double affine_coupling_row(const T* x, const T* shift, const T* log_scale, const T* mask, T* y, int64_t time) {
  using A = accumulator_t<T>;
  A logs[kCouplingBlock];
  double log_det = 0;
  for (int64_t t0 = 0; t0 < time; t0 += kCouplingBlock) {
    const int64_t n = min(kCouplingBlock, time - t0);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = t0 + i;
      const A s = FORM == CouplingForm::kAdditive ? A(0) : widen(log_scale[t]), m = MASKED ? widen(mask[t]) : A(1);
      const A value = coupled<FORM, REVERSE>(A(widen(x[t])), A(widen(shift[t])), s);
      y[t] = narrow<T>(MASKED ? value * m : value);
      if (FORM != CouplingForm::kAdditive) logs[i] = MASKED ? log_of_scale<FORM>(s) * m : log_of_scale<FORM>(s);
    }
    if (FORM != CouplingForm::kAdditive) log_det += sum_of(logs, n);
  }
  return REVERSE ? -log_det : log_det;
}

template <class T>
void affine_coupling(const AffineCouplingParams<T>& p, int64_t begin, int64_t end) {
  with_coupling(p.form, p.reverse, [&]<CouplingForm FORM, bool REVERSE>() {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.channels, c = row % p.channels;
      const T* x = p.x + b * p.x_batch + c * p.time;
      const T* shift = p.shift + b * p.shift_batch + c * p.time;
      const T* log_scale = p.log_scale ? p.log_scale + b * p.log_scale_batch + c * p.time : nullptr;
      const T* mask = p.mask ? p.mask + b * p.mask_batch : nullptr;
      T* y = p.y + row * p.time;
      p.row_log_det[row] = mask ? affine_coupling_row<FORM, REVERSE, true>(x, shift, log_scale, mask, y, p.time)
                                : affine_coupling_row<FORM, REVERSE, false>(x, shift, log_scale, mask, y, p.time);
    }
  });
}

// __restrict: more pointers than GCC compares at run time, and without knowing them apart it makes no vector code.
template <CouplingForm FORM, bool REVERSE, bool MASKED, class T>
void affine_coupling_backward_row(
    const T* grad, T grad_log_det, const T* x, const T* shift, const T* log_scale, const T* mask, T* __restrict grad_x,
    T* __restrict grad_shift, T* __restrict grad_log_scale, int64_t time) {
  for (int64_t t = 0; t < time; ++t) {
    const T g = MASKED ? grad[t] * mask[t] : grad[t], from_sum = MASKED ? grad_log_det * mask[t] : grad_log_det;
    if constexpr (FORM == CouplingForm::kAdditive) {
      grad_x[t] = g;
      grad_shift[t] = REVERSE ? -g : g;
    } else if constexpr (FORM == CouplingForm::kExp) {
      const T scale = exp_value(REVERSE ? -log_scale[t] : log_scale[t]);
      const T scaled = (REVERSE ? x[t] - shift[t] : x[t]) * scale, grad_s = g * scaled + from_sum;
      grad_x[t] = g * scale;
      grad_shift[t] = REVERSE ? -(g * scale) : g;
      grad_log_scale[t] = REVERSE ? -grad_s : grad_s;
    } else {
      const T inverse = 1 + exp_value(-(log_scale[t] + 2)), scale = REVERSE ? inverse : 1 / inverse;
      const T scaled = (REVERSE ? x[t] : x[t] + shift[t]) * scale;
      const T slope = sigmoid_value(-(log_scale[t] + 2)), grad_s = (g * scaled + from_sum) * slope;
      grad_x[t] = g * scale;
      grad_shift[t] = REVERSE ? -g : g * scale;
      grad_log_scale[t] = REVERSE ? -grad_s : grad_s;
    }
  }
}

template <class T>
void affine_coupling_backward(const AffineCouplingBackwardParams<T>& p, int64_t begin, int64_t end) {
  const AffineCouplingParams<T>& f = p.forward;
  with_coupling(f.form, f.reverse, [&]<CouplingForm FORM, bool REVERSE>() {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / f.channels, c = row % f.channels, out = row * f.time;
      const auto run = [&]<bool MASKED>() {
        affine_coupling_backward_row<FORM, REVERSE, MASKED, T>(
            p.grad + b * p.grad_batch + c * f.time, p.grad_log_det[b], f.x + b * f.x_batch + c * f.time,
            f.shift + b * f.shift_batch + c * f.time,
            f.log_scale ? f.log_scale + b * f.log_scale_batch + c * f.time : nullptr,
            MASKED ? f.mask + b * f.mask_batch : nullptr, p.grad_x + out, p.grad_shift + out,
            f.log_scale ? p.grad_log_scale + out : nullptr, f.time);
      };
      f.mask ? run.template operator()<true>() : run.template operator()<false>();
    }
  });
}

}  // namespace fastflow::FASTFLOW_ISA
