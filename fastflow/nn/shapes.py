"""Images as steps, which is what the operations know; halves that change places; no log-determinant."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def as_steps(x: Tensor) -> Tensor: ...
@overload
def as_steps(x: None) -> None: ...
def as_steps(x: Tensor | None) -> Tensor | None:
    """Return [B, C, H, W] as [B, C, H * W], a view where memory allows; anything else, and None, as it is."""
    return x.flatten(2) if isinstance(x, Tensor) and x.dim() == 4 else x


def zero_log_det(x: Tensor) -> Tensor:
    """Return zeros [B] in float32, or float64 for float64 input, as operations return their log-determinants."""
    return x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def exchange_halves(x: Tensor) -> Tensor:
    """Return `x` with the two halves of its channels in each other's place: FloWaveNet's published `change_order`."""
    return torch.cat(x.chunk(2, 1)[::-1], 1)
