"""The backward of `wn` on a compiled library, layer by layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastflow.ops.wn.reference import ByLayers, Layer, by_layers
from fastflow.ops.wn_layer.native import Library, layer_backward
from fastflow.ops.wn_layer.reference import project


def layered_on(library: Library) -> ByLayers:
    """Make `wn_backward`, and where the library gives the gate's output of what it keeps, its two parts."""

    def keep(
        x: Tensor, layer: Layer, mask: Tensor | None, causal: bool, res_scale: float, wants_skip: bool
    ) -> tuple[Any, Tensor, Tensor | None]:
        h, kept = library.run_again(x, *layer[:8], mask, layer.dilation, causal, res_scale, layer.residual)
        skip = None
        if wants_skip:
            assert library.gated is not None and kept is not None
            first = x.shape[1] if layer.residual else 0
            bias = None if layer.res_skip_bias is None else layer.res_skip_bias[first:]
            skip = project(library.gated(kept), layer.res_skip_weight[first:], bias)
        return (x, kept), h, skip

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
