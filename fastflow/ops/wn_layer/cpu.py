"""What the CPU library gives to the backward of `wn_layer` and `wn`: a layer again, with the gate's input kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry
from fastflow.ops.wn_layer.native import Library, wn_layer_backward_on


def _gate_backward(
    grad_r: Tensor, u: Tensor, h: Tensor, conv_weight: Tensor, conv_bias: Any, res_skip_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    grad_u, a = torch.ops.fastflow_cpu.wn_gate_backward(grad_r, u, res_skip_weight)
    return grad_u, a


library = Library(torch.ops.fastflow_cpu.wn_layer_keeping_u, _gate_backward, torch.ops.fastflow_cpu.gate)

registry.implement("cpu", "wn_layer_backward", wn_layer_backward_on(library))
