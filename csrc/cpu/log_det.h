// The log-determinant of a flow that does the same at every step.
#pragma once

#include "host.h"

namespace fastflow {

// [B]: `per_step` times the steps of each batch entry, which are T or the sum of its mask.
template <class T>
Tensor log_det_of_steps(const Tensor& x, const Dense<T>& mask, double per_step) {
  const int64_t batch = x.size(0), time = x.size(2);
  const Tensor log_det = empty_of(x, {batch}, scalar_type_of<accumulator_t<T>>);
  for (int64_t b = 0; b < batch; ++b) {
    double steps = static_cast<double>(time);
    if (mask.data) {
      steps = 0;
      for (int64_t t = 0; t < time; ++t) steps += widen(mask.data[b * mask.batch + t]);
    }
    writable<accumulator_t<T>>(log_det)[b] = static_cast<accumulator_t<T>>(steps * per_step);
  }
  return log_det;
}

}  // namespace fastflow
