"""Public face of `gate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.gate import reference


def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2, x.shape[2])


_gate = registry.define("gate", reference.gate, _fake)
_gate_backward = registry.define(
    "gate_backward",
    reference.gate_backward,
    lambda grad, x: torch.empty_like(x, memory_format=torch.contiguous_format),
    backward=True,
)


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    out: Tensor = _gate_backward(grad, *ctx.saved_tensors)
    return out


_gate.register_autograd(_backward, setup_context=_setup)


def gate(x: Tensor) -> Tensor:
    """Gated activation unit: tanh of the first half of the channels times sigmoid of the second half.

    Formula: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", eq. 2.

    Args:
        x: [B, 2G, T], floating point.

    Returns:
        [B, G, T].

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` is not three-dimensional or its channel count is odd.
    """
    checks.check_floating("x", x)
    if x.dim() != 3 or x.shape[1] % 2:
        raise ValueError(f"`x` must be [B, 2G, T]; got {list(x.shape)}")
    out: Tensor = _gate(x)
    return out
