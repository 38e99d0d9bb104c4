"""`wn_layer` on the CUDA library: tf32 where PyTorch allows it, and the backward around the library's gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.wn_layer.native import Library, wn_layer_backward_on


def allows_tf32(x: Tensor) -> bool:
    """Whether products of this tensor may round float32 to tf32."""
    return tuning.precision(x.dtype) == "tf32"


def wn_layer(h: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    h_out, skip = torch.ops.fastflow_cuda.wn_layer(h, *rest, allows_tf32(h))
    return h_out, skip


def _run_again(h: Tensor, *rest: Any) -> tuple[Tensor, None]:
    """Keeps nothing: the gate's backward computes the gate's input once more, on chip."""
    residual = rest[-1]
    return (wn_layer(h, *rest)[0] if residual else h), None


def _gate_backward(
    grad_r: Tensor,
    kept: None,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    arguments = (grad_r, h, conv_weight, conv_bias, res_skip_weight, *rest)
    grad_u, a = torch.ops.fastflow_cuda.wn_gate_backward(*arguments, allows_tf32(h))
    return grad_u, a


library = Library(_run_again, _gate_backward)

registry.implement("cuda", "wn_layer", wn_layer)
registry.implement("cuda", "wn_layer_backward", wn_layer_backward_on(library))
