"""The affine coupling layer as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastflow.ops.affine_coupling.api import affine_coupling


class AffineCoupling(nn.Module):
    """Affine coupling: one half of the channels passes, the other is transformed by what a network makes of the first.

    Formula: Dinh et al. 2017, "Density Estimation using Real NVP", eq. 7 and 8; the forms are in
    `fastflow.ops.affine_coupling`.

    Args:
        net: called as `net(kept, *args)` with the kept half [B, C / 2, T]; returns [B, C, T], the shift first and the
            log scale second as in WaveGlow, or for the additive form the shift [B, C / 2, T] alone.
        form: "exp", "sigmoid" or "additive".
        transform_first: transform the first half by the second, instead of the second by the first.
    """

    def __init__(self, net: nn.Module, *, form: str = "exp", transform_first: bool = False) -> None:
        super().__init__()
        self.net = net
        self.form = form
        self.transform_first = transform_first

    def forward(
        self, x: Tensor, *args: Tensor, mask: Tensor | None = None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return y [B, C, T] and the log-determinant [B] for `x` [B, C, T].

        Args:
            x: [B, C, T], C even.
            args: passed on to `net`.
            mask: [B, 1, T] or None, applied to the transformed half.
            reverse: compute x from y.

        Raises:
            ValueError: C is odd, or the network's output does not fit.
        """
        if x.dim() != 3 or x.shape[1] % 2:
            raise ValueError(f"`x` must be [B, C, T] with C even; got {list(x.shape)}")
        first, second = x.chunk(2, 1)
        kept, moved = (second, first) if self.transform_first else (first, second)
        out = self.net(kept, *args)
        additive = self.form == "additive"
        rows = moved.shape[1] * (1 if additive else 2)
        if out.shape[1] != rows:
            raise ValueError(f"`net` must return {rows} channels for the form {self.form!r}; got {list(out.shape)}")
        shift, log_scale = (out, None) if additive else out.to(x.dtype).chunk(2, 1)
        moved, log_det = affine_coupling(
            moved, shift.to(x.dtype), log_scale, mask=mask, form=self.form, reverse=reverse
        )
        return torch.cat((moved, kept) if self.transform_first else (kept, moved), 1), log_det
