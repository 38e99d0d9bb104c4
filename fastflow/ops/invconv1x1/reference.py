"""Plain PyTorch: the specification of `invconv1x1`."""

from __future__ import annotations

import torch
from torch import Tensor


def invconv1x1(x: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    y = torch.matmul(weight, x)
    return y if mask is None else y * mask


def invconv1x1_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None) -> list[Tensor]:
    if mask is not None:
        grad = grad * mask
    return [torch.matmul(weight.t(), grad), torch.matmul(grad, x.transpose(1, 2)).sum(0)]
