// Implementations for the schemas that fastflow/ops/registry.py defines in the namespace fastflow_cuda.
#include <torch/csrc/stable/library.h>

#include "ops.h"

// The emulator registers the same functions for tensors on the CPU.
#ifndef FASTFLOW_DISPATCH_KEY
#define FASTFLOW_DISPATCH_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_IMPL(fastflow_cuda, FASTFLOW_DISPATCH_KEY, m) {
  m.impl("wn_layer", TORCH_BOX(&fastflow::wn_layer));
  m.impl("wn_gate_backward", TORCH_BOX(&fastflow::wn_gate_backward));
  m.impl("wn", TORCH_BOX(&fastflow::wn));
  m.impl("gate", TORCH_BOX(&fastflow::gate));
  m.impl("gate_backward", TORCH_BOX(&fastflow::gate_backward));
  m.impl("affine_coupling", TORCH_BOX(&fastflow::affine_coupling));
  m.impl("affine_coupling_backward", TORCH_BOX(&fastflow::affine_coupling_backward));
  m.impl("invconv1x1", TORCH_BOX(&fastflow::invconv1x1));
  m.impl("invconv1x1_backward", TORCH_BOX(&fastflow::invconv1x1_backward));
  m.impl("actnorm", TORCH_BOX(&fastflow::actnorm));
  m.impl("actnorm_backward", TORCH_BOX(&fastflow::actnorm_backward));
  m.impl("flow_step", TORCH_BOX(&fastflow::flow_step));
}
