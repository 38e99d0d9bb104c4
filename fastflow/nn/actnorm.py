"""Activation normalisation as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastflow.nn.shapes import as_steps
from fastflow.ops.actnorm.api import actnorm, actnorm_init


class ActNorm(nn.Module):
    """Activation normalisation with data-dependent start, y = scale * (x + loc).

    The parameters are `loc` and `scale`, [1, C, 1], the names of FloWaveNet. The first forward sets them so that its
    output has zero mean and unit variance per channel; a state dict that holds them counts as that start.

    Args:
        channels: C.
        initialized: start from loc 0 and scale 1 instead of from the first input.

    Raises:
        ValueError: `channels` is not positive.
    """

    def __init__(self, channels: int, *, initialized: bool = False) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"`channels` must be at least 1; got {channels}")
        self.channels = channels
        self.initialized = initialized
        self.loc = nn.Parameter(torch.zeros(1, channels, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor, *, mask: Tensor | None = None, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y in the shape of `x`, [B, C, T] or [B, C, H, W], and the log-determinant [B]; see `fastflow.ops`.

        Raises:
            ValueError: `x` does not fit, or has fewer than two steps to initialise from.
            RuntimeError: `reverse` before the first forward of a module that was not initialised.
        """
        if not self.initialized:
            if reverse:
                raise RuntimeError("ActNorm must see data (a forward or a state dict) before `reverse`")
            self.initialize(x, mask=mask)
        y, log_det = actnorm(as_steps(x), self.loc, self.scale, mask=as_steps(mask), reverse=reverse)
        return y.view(x.shape), log_det

    @torch.no_grad()
    def initialize(self, x: Tensor, *, mask: Tensor | None = None) -> None:
        """Set loc and scale from `x` [B, C, T] or [B, C, H, W]."""
        loc, scale = actnorm_init(as_steps(x), mask=as_steps(mask))
        self.loc.copy_(loc[:, None])
        self.scale.copy_(scale[:, None])
        self.initialized = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "loc" in state_dict and prefix + "scale" in state_dict:
            self.initialized = True

    def extra_repr(self) -> str:
        return f"{self.channels}, initialized={self.initialized}"
