"""The backward of `wn` on a compiled library, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastflow.ops.wn.reference import Layer, by_layers
from fastflow.ops.wn_layer.native import Library, layer_backward


def wn_backward_on(library: Library) -> Callable[..., list[Tensor]]:
    """Make the operation `wn_backward`."""

    def keep(x: Tensor, layer: Layer, mask: Tensor | None, causal: bool, res_scale: float) -> tuple[Any, Tensor]:
        h, kept = library.run_again(x, *layer[:8], mask, layer.dilation, causal, res_scale, layer.residual)
        return (x, kept), h

    def backward(
        grad_h: Tensor,
        grad_skip: Tensor,
        kept: Any,
        layer: Layer,
        mask: Tensor | None,
        causal: bool,
        res_scale: float,
        needs: list[bool],
    ) -> list[Tensor | None]:
        x, inside = kept
        options = (mask, layer.dilation, causal, res_scale, layer.residual, needs)
        return layer_backward(library, grad_h, grad_skip, inside, x, *layer[:8], *options)

    return by_layers(keep, backward)
