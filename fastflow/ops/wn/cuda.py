"""`wn` on the CUDA library: tf32 where PyTorch allows it, and the backward layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry
from fastflow.ops.wn.reference import Layer, by_layers
from fastflow.ops.wn_layer.cuda import allows_tf32, layer_backward, wn_layer


def wn(h: Tensor, *rest: Any) -> Tensor:
    result: Tensor = torch.ops.fastflow_cuda.wn(h, *rest, allows_tf32(h))
    return result


def _keep(x: Tensor, layer: Layer, mask: Tensor | None, causal: bool, res_scale: float) -> tuple[Tensor, Tensor]:
    if not layer.residual:
        return x, x
    h, _ = wn_layer(x, *layer[:8], mask, layer.dilation, causal, res_scale, True)
    return x, h


def _layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    kept: Tensor,
    layer: Layer,
    mask: Tensor | None,
    causal: bool,
    res_scale: float,
    needs: list[bool],
) -> list[Tensor | None]:
    return layer_backward(
        grad_h, grad_skip, kept, *layer[:8], mask, layer.dilation, causal, res_scale, layer.residual, needs
    )


registry.implement("cuda", "wn", wn)
registry.implement("cuda", "wn_backward", by_layers(_keep, _layer_backward))
