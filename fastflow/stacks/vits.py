"""VITS, jaywalnut310/vits, and its forks: Piper, RVC, GPT-SoVITS, OpenVoice, MeloTTS, Bert-VITS2, so-vits-svc, NeMo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.stacks.block import Block
from fastflow.stacks.couplings import ResidualCoupling
from fastflow.stacks.gated import FusedWN


class WN(FusedWN):
    """`modules.WN` of VITS, all its forks, and Glow-TTS."""

    stack = "VITS, Glow-TTS"
    forward_arguments = ("x", "x_mask", "g", "kwargs")
    attributes = ("hidden_channels", "n_layers", "gin_channels")

    def forward(self, x: Tensor, x_mask: Any = None, g: Tensor | None = None, **kwargs: Any) -> Any:
        out = self._fused(x, x_mask, g)
        return super().forward(x, x_mask, g, **kwargs) if out is None else out


class Coupling(ResidualCoupling):
    """`modules.ResidualCouplingLayer`; in Coqui's models `ResidualCouplingBlock`."""

    stack = "VITS"
    parts = ("pre", "enc", "post")
    forward_arguments = ("x", "x_mask", "g", "reverse")
    mean_only_attribute = "mean_only"

    def forward(self, x: Tensor, x_mask: Any, g: Tensor | None = None, reverse: bool = False) -> Any:
        y, log_det = self._coupled(x, x_mask, g, reverse)
        return y if reverse else (y, log_det)


class CouplingOfRVC(Coupling):
    """The same in RVC, which returns a zero in place of a log-determinant in reverse."""

    stack = "RVC"

    def forward(self, x: Tensor, x_mask: Any, g: Tensor | None = None, reverse: bool = False) -> Any:
        y, log_det = self._coupled(x, x_mask, g, reverse)
        return y, torch.zeros([1]) if reverse else log_det


BLOCKS: tuple[type[Block], ...] = (WN, Coupling, CouplingOfRVC)
