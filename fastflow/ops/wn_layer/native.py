"""The backward of `wn_layer` on a compiled library; `cpu.py` and `cuda.py` say what each library gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastflow.ops.wn_layer.reference import output_gradients, products_backward


class Library(NamedTuple):
    """What a library's backward is made of."""

    run_again: Callable[..., tuple[Tensor, Tensor | None]]
    """Takes `wn_layer`'s arguments; returns the residual output (any, where the layer has none) and what to keep."""
    gate_backward: Callable[..., tuple[Tensor, Tensor]]
    """Takes the gradient of the second product's rows [B, R + S, T], what was kept, and `wn_layer`'s arguments up to
    `residual`, without mask and res_scale. Returns the gradient of the gate's input and the gate's output."""
    gated: Callable[[Tensor], Tensor] | None = None
    """Takes what was kept, returns the gate's output; None where nothing is kept."""


def layer_backward(
    library: Library,
    grad_h: Tensor,
    grad_skip: Tensor,
    kept: Tensor | None,
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

    The library goes backward through the second product and the gate in one pass. What remains are plain products,
    which PyTorch's libraries do best.
    """
    grad_h, grad_r = output_gradients(grad_h, grad_skip, mask, res_scale, residual)
    inputs = (h, conv_weight, conv_bias, res_skip_weight, res_skip_bias, cond, cond_weight, cond_bias, input_bias)
    options = (dilation, causal, residual)
    grad_u, a = library.gate_backward(grad_r, kept, *inputs, *options)
    return products_backward(grad_h, grad_r, grad_u, a, *inputs, *options, needs)


def wn_layer_backward_on(library: Library) -> Callable[..., list[Tensor]]:
    """Make the operation `wn_layer_backward`."""

    def wn_layer_backward(grad_h: Tensor, grad_skip: Tensor, h: Tensor, *rest: Any) -> list[Tensor]:
        _, kept = library.run_again(h, *rest[:-2], False)  # without the residual output
        return [h.new_empty(0) if g is None else g for g in layer_backward(library, grad_h, grad_skip, kept, h, *rest)]

    return wn_layer_backward
