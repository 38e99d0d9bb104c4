// The log-determinant of a flow that does the same at every step.
#pragma once

#include "host.h"

namespace fastflow {

// How many steps batch entry b has: `time`, or the sum of its mask.
template <class T>
double steps_of(const Dense<T>& mask, int64_t b, int64_t time) {
  if (!mask.data) return static_cast<double>(time);
  double steps = 0;
  for (int64_t t = 0; t < time; ++t) steps += widen(mask.data[b * mask.batch + t]);
  return steps;
}

// [B]: `per_step` times the steps of each batch entry.
template <class T>
Tensor log_det_of_steps(const Tensor& x, const Dense<T>& mask, double per_step) {
  using A = accumulator_t<T>;
  const Tensor log_det = empty_of(x, {x.size(0)}, scalar_type_of<A>);
  for (int64_t b = 0; b < x.size(0); ++b)
    writable<A>(log_det)[b] = static_cast<A>(steps_of(mask, b, x.size(2)) * per_step);
  return log_det;
}

}  // namespace fastflow
