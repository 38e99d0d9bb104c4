// Implementations for the schemas that fastflow/ops/registry.py defines in the namespace fastflow_cuda.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, CUDA, m) { m.impl("gate", TORCH_BOX(&fastflow::gate)); }
