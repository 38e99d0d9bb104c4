// Implementations for the schemas that fastflow/ops/registry.py defines in the namespace fastflow_cpu.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(fastflow_cpu, CPU, m) {
  m.impl("gate", TORCH_BOX(&fastflow::gate));
  m.impl("wn_layer", TORCH_BOX(&fastflow::wn_layer));
  m.impl("wn_layer_keeping_u", TORCH_BOX(&fastflow::wn_layer_keeping_u));
  m.impl("wn_gate_backward", TORCH_BOX(&fastflow::wn_gate_backward));
  m.impl("wn", TORCH_BOX(&fastflow::wn));
  m.impl("separable_wn", TORCH_BOX(&fastflow::separable_wn));
  m.impl("affine_coupling", TORCH_BOX(&fastflow::affine_coupling));
  m.impl("invconv1x1", TORCH_BOX(&fastflow::invconv1x1));
  m.impl("actnorm", TORCH_BOX(&fastflow::actnorm));
  m.impl("flow_step", TORCH_BOX(&fastflow::flow_step));
  m.impl("gate_backward", TORCH_BOX(&fastflow::gate_backward));
  m.impl("affine_coupling_backward", TORCH_BOX(&fastflow::affine_coupling_backward));
  m.impl("actnorm_backward", TORCH_BOX(&fastflow::actnorm_backward));
}
