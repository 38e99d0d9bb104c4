"""`wn_layer` on the CUDA library: tf32 where PyTorch allows it, and the backward around the library's gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.wn_layer.reference import output_gradients, products_backward


def allows_tf32(x: Tensor) -> bool:
    """Whether products of this tensor may round float32 to tf32."""
    return tuning.precision(x.dtype) == "tf32"


def wn_layer(h: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    h_out, skip = torch.ops.fastflow_cuda.wn_layer(h, *rest, allows_tf32(h))
    return h_out, skip


def layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
    needs: list[bool],
) -> list[Tensor | None]:
    """Return the gradients of the nine inputs h to input_bias, None where not needed or not given.

    One launch computes the gate's input again and goes backward through the second product and the gate, all on chip.
    The products that remain are plain matrix products, which PyTorch's libraries do best.
    """
    grad_h, grad_r = output_gradients(grad_h, grad_skip, mask, res_scale, residual)
    grad_u, a = torch.ops.fastflow_cuda.wn_gate_backward(
        grad_r,
        h,
        conv_weight,
        conv_bias,
        res_skip_weight,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
        dilation,
        causal,
        residual,
        allows_tf32(h),
    )
    return products_backward(
        grad_h,
        grad_r,
        grad_u,
        a,
        h,
        conv_weight,
        conv_bias,
        res_skip_weight,
        res_skip_bias,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
        dilation,
        causal,
        residual,
        needs,
    )


def wn_layer_backward(grad_h: Tensor, grad_skip: Tensor, h: Tensor, *rest: Any) -> list[Tensor]:
    return [h.new_empty(0) if g is None else g for g in layer_backward(grad_h, grad_skip, h, *rest)]


registry.implement("cuda", "wn_layer", wn_layer)
registry.implement("cuda", "wn_layer_backward", wn_layer_backward)
