"""The affine coupling layer as a module, and what a network's output means to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastflow.nn.shapes import as_steps
from fastflow.ops.affine_coupling.api import affine_coupling


def shift_and_log_scale(out: Tensor, moved: Tensor, form: str) -> tuple[Tensor, Tensor | None]:
    """Return the two halves of a network's output, in the dtype and as the steps of what they transform.

    Args:
        out: [B, 2 * C, ...], the shift first and the log scale second; for the additive form the shift [B, C, ...].
        moved: [B, C, ...], what is transformed.
        form: of the coupling.

    Raises:
        ValueError: `out` has another number of channels.
    """
    rows = moved.shape[1] * (1 if form == "additive" else 2)
    if out.shape[1] != rows:
        raise ValueError(f"`net` must return {rows} channels for the form {form!r}; got {list(out.shape)}")
    out = as_steps(out).to(moved.dtype)
    if form == "additive":
        return out, None
    shift, log_scale = out.chunk(2, 1)
    return shift, log_scale


class AffineCoupling(nn.Module):
    """Affine coupling: one half of the channels passes, the other is transformed by what a network makes of the first.

    Formula: Dinh et al. 2017, "Density Estimation using Real NVP", eq. 7 and 8; the forms are in
    `fastflow.ops.affine_coupling`.

    Args:
        net: called as `net(kept, *args)` with the kept half [B, C / 2, T] (of images [B, C / 2, H, W]); returns
            [B, C, T], the shift first and the log scale second as in WaveGlow, or for the additive form (NICE) the
            shift [B, C / 2, T] alone.
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
        """Return y in the shape of `x` and the log-determinant [B].

        Args:
            x: [B, C, T] or [B, C, H, W], C even.
            args: passed on to `net`.
            mask: [B, 1, T] or [B, 1, H, W], or None, applied to the transformed half.
            reverse: compute x from y.

        Raises:
            ValueError: C is odd, or the network's output does not fit.
        """
        return self.couple(x, self.net(self.kept(x), *args), mask=mask, reverse=reverse)

    def kept(self, x: Tensor) -> Tensor:
        """Return the half that passes: of `x`, and of y.

        Raises:
            ValueError: C is odd.
        """
        if x.dim() not in (3, 4) or x.shape[1] % 2:
            raise ValueError(f"`x` must be [B, C, T] or [B, C, H, W] with C even; got {list(x.shape)}")
        return x.chunk(2, 1)[1 if self.transform_first else 0]

    def couple(
        self, x: Tensor, out: Tensor, *, mask: Tensor | None = None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, given what `net` returned of the kept half.

        Raises:
            ValueError: `out` does not fit.
        """
        first, second = x.chunk(2, 1)
        kept, moved = (second, first) if self.transform_first else (first, second)
        shift, log_scale = shift_and_log_scale(out, moved, self.form)
        moved, log_det = affine_coupling(
            as_steps(moved), shift, log_scale, mask=as_steps(mask), form=self.form, reverse=reverse
        )
        moved = moved.view(kept.shape)
        return torch.cat((moved, kept) if self.transform_first else (kept, moved), 1), log_det
