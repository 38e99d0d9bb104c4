// What the small operations check on the host, in both libraries.
#pragma once

#include <string>

#include "host.h"
#include "params.h"

namespace fastflow {

inline CouplingForm parse_coupling_form(const std::string& form) {
  if (form == "exp") return CouplingForm::kExp;
  if (form == "sigmoid") return CouplingForm::kSigmoid;
  FASTFLOW_CHECK(form == "additive", "`form` must be \"exp\", \"sigmoid\" or \"additive\"; got \"", form, "\"");
  return CouplingForm::kAdditive;
}

inline CouplingForm check_coupling(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    const std::string& form) {
  const CouplingForm parsed = parse_coupling_form(form);
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(shift, "shift", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  FASTFLOW_CHECK(
      log_scale.has_value() == (parsed != CouplingForm::kAdditive),
      "`log_scale` must be given for the forms exp and sigmoid, and only for these; got form ", form,
      log_scale ? " with" : " without", " log_scale");
  if (log_scale) check_shape(*log_scale, "log_scale", "[B, C, T]", {x.size(0), x.size(1), x.size(2)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return parsed;
}

// x: [B, C, T], C even, which the caller has checked.
inline void check_flow_step(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, CouplingForm form) {
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  check_rank(hidden, "hidden", "[B, S, T]", 3);
  const int64_t rows = form == CouplingForm::kAdditive ? channels / 2 : channels;
  check_shape(hidden, "hidden", "[B, S, T]", {batch, hidden.size(1), time});
  check_shape(end_weight, "end_weight", "[rows, S]", {rows, hidden.size(1)});
  if (end_bias) check_shape(*end_bias, "end_bias", "[rows]", {rows});
  FASTFLOW_CHECK(
      n_early >= 0 && n_early < channels, "`n_early` must leave at least one of the ", channels,
      " channels of `x`; got ", n_early);
  if (weight) check_shape(*weight, "weight", "[C - n_early, C - n_early]", {channels - n_early, channels - n_early});
  if (early) {
    check_rank(*early, "early", "[B, E, T]", 3);
    check_shape(*early, "early", "[B, E, T]", {batch, early->size(1), time});
  }
}

}  // namespace fastflow
