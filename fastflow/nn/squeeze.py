"""Space into channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.shapes import zero_log_det


class Squeeze2d(nn.Module):
    """Fold each 2 x 2 block of pixels into channels: [B, C, H, W] -> [B, 4 * C, H / 2, W / 2].

    Pixel (i, j) of a block of channel c goes to channel 4 * c + 2 * i + j, as in openai/glow's `squeeze2d`.
    """

    def forward(self, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y and the log-determinant [B], which is zero.

        Raises:
            ValueError: `x` is not [B, C, H, W] with H and W even, or in reverse with C a multiple of 4.
        """
        if x.dim() != 4 or (x.shape[1] % 4 if reverse else x.shape[2] % 2 or x.shape[3] % 2):
            sizes = "C a multiple of 4" if reverse else "H and W even"
            raise ValueError(f"`x` must be [B, C, H, W] with {sizes}; got {list(x.shape)}")
        y = F.pixel_shuffle(x, 2) if reverse else F.pixel_unshuffle(x, 2)
        return y, zero_log_det(x)
