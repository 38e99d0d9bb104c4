"""The invertible 1x1 convolution as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastflow.nn.packing import PackingModule
from fastflow.nn.shapes import as_steps
from fastflow.ops.invconv1x1.api import PLU, invconv1x1, inverse, multiply


class InvertibleConv1x1(PackingModule[tuple[Tensor, Tensor]]):
    """Invertible 1x1 convolution over C channels, started from a random rotation (determinant 1).

    Plain, its parameter is `conv.weight` [C, C, 1], the name of WaveGlow. With `plu`, the permutation and the signs are
    buffers and `lower`, `upper` and `log_s` are learned (Kingma & Dhariwal 2018, "Glow", eq. 10 and 11).

    Args:
        channels: C.
        plu: learn the weight as a product of triangular matrices, whose log-determinant is a sum.

    Raises:
        ValueError: `channels` is not positive.
    """

    def __init__(self, channels: int, *, plu: bool = False) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"`channels` must be at least 1; got {channels}")
        self.channels = channels
        weight = torch.linalg.qr(torch.randn(channels, channels)).Q
        weight[:, 0] *= torch.linalg.det(weight).sign()
        self.plu = plu
        if plu:
            factors = PLU.from_weight(weight)
            self.register_buffer("permutation", factors.permutation)
            self.register_buffer("sign", factors.sign)
            self.lower = nn.Parameter(factors.lower)
            self.upper = nn.Parameter(factors.upper)
            self.log_s = nn.Parameter(factors.log_s)
        else:
            # a plain module that holds the parameter under its published name
            self.conv = nn.Conv1d(channels, channels, 1, bias=False)
            self.conv.weight = nn.Parameter(weight[:, :, None])

    def _stored(self) -> list[Tensor]:
        """Return the tensors that make the weight."""
        weight = self.weight()
        return list(weight) if isinstance(weight, PLU) else [self.conv.weight]

    def weight(self) -> Tensor | PLU:
        """Return the weight [C, C], or its factors."""
        if not self.plu:
            return self.conv.weight[:, :, 0]
        permutation, sign = self.get_buffer("permutation"), self.get_buffer("sign")
        return PLU(permutation, self.lower, self.upper, sign, self.log_s)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y in the shape of `x`, [B, C, T] or [B, C, H, W], and the log-determinant [B]; see `fastflow.ops`.

        Raises:
            ValueError: `x` does not fit, or the weight to invert is singular.
        """
        # with the kept inverse as its weight the operation runs backwards, the log-determinant's sign included
        weight = self.inverse(self._stored()[0].dtype) if reverse else self.weight()
        y, log_det = invconv1x1(as_steps(x), weight, mask=as_steps(mask))
        return y.view(x.shape), log_det

    def infer(self, y: Tensor, *, name: str = "weight") -> Tensor:
        """Return x from `y` [B, C, T] or [B, C, H, W], without the log-determinant, by an inverse kept between calls.

        The inverse is computed in float32 or wider and made again when the weight changes. `name` is what an error
        calls the weight.

        Raises:
            ValueError: the weight is singular.
        """
        return multiply(as_steps(y), self.inverse(y.dtype, name=name)).view(y.shape)

    def inverse(self, dtype: torch.dtype, *, name: str = "weight") -> Tensor:
        """Return the inverse [C, C] of the weight in `dtype`, kept between calls; see `infer`."""

        def build() -> tuple[Tensor, Tensor]:
            wide = inverse(weight, name)
            return wide, wide.to(self._stored()[0].dtype)

        weight = self.weight()
        wide, same = self._packed.get(self._stored(), build)
        return same if same.dtype == dtype else wide.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, plu={self.plu}"
