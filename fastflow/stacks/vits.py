"""VITS, jaywalnut310/vits, and its forks: Piper, RVC, GPT-SoVITS, OpenVoice, MeloTTS, Bert-VITS2, so-vits-svc, NeMo."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastflow.stacks.block import Block
from fastflow.stacks.gated import FusedWN


class WN(FusedWN):
    """`modules.WN` of VITS, all its forks, and Glow-TTS."""

    stack = "VITS, Glow-TTS"
    forward_arguments = ("x", "x_mask", "g", "kwargs")
    attributes = ("hidden_channels", "n_layers", "gin_channels")

    def forward(self, x: Tensor, x_mask: Any = None, g: Tensor | None = None, **kwargs: Any) -> Any:
        out = self._fused(x, x_mask, g)
        return super().forward(x, x_mask, g, **kwargs) if out is None else out


BLOCKS: tuple[type[Block], ...] = (WN,)
