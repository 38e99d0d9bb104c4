"""Plain PyTorch: the specification of `invconv1x1`."""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many steps each item has, [B] in float32 or wider."""
    if mask is None:
        return _wide(x.new_empty(0)).new_full((x.shape[0],), x.shape[2])
    return _wide(mask).sum((1, 2))


def invconv1x1(x: Tensor, weight: Tensor, mask: Tensor | None, log_det: bool) -> tuple[Tensor, Tensor]:
    y = torch.matmul(weight.to(x.dtype), x)
    if mask is not None:
        y = y * mask
    if not log_det:
        return y, _wide(x.new_empty(0))
    return y, torch.linalg.slogdet(_wide(weight)).logabsdet * steps(x, mask)


def invconv1x1_backward(
    grad: Tensor, grad_log_det: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, log_det: bool
) -> list[Tensor]:
    """Return the gradients of x and weight."""
    if mask is not None:
        grad = grad * mask
    grad_x = torch.matmul(weight.to(x.dtype).t(), grad)
    grad_weight = torch.matmul(grad, x.transpose(1, 2)).sum(0)
    if log_det:  # d log |det W| / d W = W^-T; a singular weight gives infinities, without waiting to tell
        inverse = torch.linalg.inv_ex(_wide(weight)).inverse
        grad_weight = grad_weight + (grad_log_det * steps(x, mask)).sum() * inverse.t()
    return [grad_x, grad_weight.to(weight.dtype)]
