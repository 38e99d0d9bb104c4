"""Plain PyTorch: the specification of `actnorm`."""

from __future__ import annotations

from torch import Tensor


def actnorm(x: Tensor, loc: Tensor, scale: Tensor, mask: Tensor | None, reverse: bool) -> Tensor:
    loc, scale = loc[:, None], scale[:, None]
    y = x / scale - loc if reverse else scale * (x + loc)
    return y if mask is None else y * mask


def actnorm_backward(
    grad: Tensor, x: Tensor, loc: Tensor, scale: Tensor, mask: Tensor | None, reverse: bool
) -> list[Tensor]:
    if mask is not None:
        grad = grad * mask
    loc, scale = loc[:, None], scale[:, None]
    if reverse:
        grad_x = grad / scale
        return [grad_x, -grad.sum((0, 2)), -(grad_x * x / scale).sum((0, 2))]
    grad_x = grad * scale
    return [grad_x, grad_x.sum((0, 2)), (grad * (x + loc)).sum((0, 2))]
