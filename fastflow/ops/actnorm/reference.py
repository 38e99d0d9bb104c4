"""Plain PyTorch: the specification of `actnorm`."""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many steps each item has, [B] in float32 or wider."""
    if mask is None:
        return _wide(x.new_empty(0)).new_full((x.shape[0],), x.shape[2])
    return _wide(mask).sum((1, 2))


def actnorm(x: Tensor, loc: Tensor, scale: Tensor, mask: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    log_det = _wide(scale).abs().log().sum() * _steps(x, mask)
    loc, scale = loc[:, None], scale[:, None]
    y = x / scale - loc if reverse else scale * (x + loc)
    return (y if mask is None else y * mask), -log_det if reverse else log_det


def actnorm_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Return the gradients of x, loc and scale."""
    if mask is not None:
        grad = grad * mask
    grad_log_scale = (grad_log_det * _steps(x, mask)).sum()  # of every channel's log |scale|
    grad_log = ((-grad_log_scale if reverse else grad_log_scale) / _wide(scale)).to(x.dtype)
    loc, scale = loc[:, None], scale[:, None]
    if reverse:
        grad_x = grad / scale
        return [grad_x, -grad.sum((0, 2)), grad_log - (grad_x * x / scale).sum((0, 2))]
    grad_x = grad * scale
    return [grad_x, grad_x.sum((0, 2)), grad_log + (grad * (x + loc)).sum((0, 2))]
