// What the small operations share on the host.
#pragma once

#include <string>

#include "host.h"

namespace fastflow {

inline CouplingForm parse_coupling_form(const std::string& form) {
  if (form == "exp") return CouplingForm::kExp;
  if (form == "sigmoid") return CouplingForm::kSigmoid;
  FASTFLOW_CHECK(form == "additive", "`form` must be \"exp\", \"sigmoid\" or \"additive\"; got \"", form, "\"");
  return CouplingForm::kAdditive;
}

// What sums over empty tensors are.
template <class T>
Tensor zeros_of(const Tensor& like, std::initializer_list<int64_t> shape, arch::Stream stream) {
  const Tensor zeros = empty_of(like, shape, scalar_type_of<T>);
  if (zeros.numel() > 0) arch::zero_async(writable<T>(zeros), zeros.numel() * sizeof(T), stream);
  return zeros;
}

}  // namespace fastflow
