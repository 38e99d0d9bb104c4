"""Flows one after another."""

from __future__ import annotations

from torch import Tensor, nn

from fastflow.nn.shapes import zero_log_det


class FlowSequential(nn.Sequential):
    """Invertible modules in order, and in `reverse` in the opposite order.

    Each is called as `module(x, reverse=...)` and returns y and the log-determinant [B]; so does this.
    """

    def forward(self, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y, and the sum of the log-determinants [B]."""
        total = zero_log_det(x)
        for module in reversed(self) if reverse else self:
            x, log_det = module(x, reverse=reverse)
            total = total + log_det
        return x, total
