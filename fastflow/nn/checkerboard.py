"""The coupling layer whose parts are the two colours of a checkerboard."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastflow.nn.coupling import shift_and_log_scale
from fastflow.nn.shapes import as_steps
from fastflow.ops.affine_coupling.api import affine_coupling


class CheckerboardCoupling(nn.Module):
    """Affine coupling with a checkerboard mask: pixels of one colour pass, the others are transformed by a network.

    Formula: Dinh et al. 2017, "Density Estimation using Real NVP", eq. 9 and figure 3. It is the operation
    `fastflow.ops.affine_coupling` with the mask of the pixels that it transforms.

    Args:
        net: called with the image [B, C, H, W], zero where it is to be transformed; returns [B, 2 * C, H, W], the shift
            first and the log scale second, or for the additive form (NICE) the shift [B, C, H, W] alone.
        form: "exp", "sigmoid" or "additive".
        transform_first: transform the colour of the pixel (0, 0), instead of the other.
    """

    def __init__(self, net: nn.Module, *, form: str = "exp", transform_first: bool = False) -> None:
        super().__init__()
        self.net = net
        self.form = form
        self.transform_first = transform_first

    def forward(self, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y [B, C, H, W] and the log-determinant [B] for `x` [B, C, H, W].

        Raises:
            ValueError: `x` has another number of dimensions, or the network's output does not fit.
        """
        return self.couple(x, self.net(self.kept(x)), reverse=reverse)

    def kept(self, x: Tensor) -> Tensor:
        """Return the pixels that pass, of `x` or of y, with zeros at the others: [B, C, H, W].

        Raises:
            ValueError: `x` has another number of dimensions.
        """
        if x.dim() != 4:
            raise ValueError(f"`x` must be [B, C, H, W]; got {list(x.shape)}")
        return x.masked_fill(self._moves(x), 0)

    def couple(self, x: Tensor, out: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, given what `net` returned of the kept pixels.

        Raises:
            ValueError: `out` does not fit.
        """
        moves = self._moves(x)
        shift, log_scale = shift_and_log_scale(out, x, self.form)
        mask = moves.to(x.dtype).expand(x.shape[0], 1, -1, -1)
        moved, log_det = affine_coupling(
            as_steps(x), shift, log_scale, mask=as_steps(mask), form=self.form, reverse=reverse
        )
        return torch.where(moves, moved.view(x.shape), x), log_det

    def _moves(self, x: Tensor) -> Tensor:
        """Return which pixels are transformed, [H, W]."""
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[2:])
        return (rows[:, None] + columns) % 2 == (0 if self.transform_first else 1)
