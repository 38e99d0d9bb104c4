// The operations of the namespace fastflow_cuda. Schemas, shapes and meanings: fastflow/ops/registry.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace fastflow {

torch::stable::Tensor gate(const torch::stable::Tensor& x);

}  // namespace fastflow
