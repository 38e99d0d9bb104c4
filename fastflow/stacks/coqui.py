"""Coqui TTS: VITS, Glow-TTS, SpeedySpeech."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastflow.stacks.block import Block
from fastflow.stacks.gated import FusedWN


class WN(FusedWN):
    """`TTS.tts.layers.generic.wavenet.WN`."""

    stack = "Coqui TTS"
    forward_arguments = ("x", "x_mask", "g", "kwargs")
    attributes = ("hidden_channels", "num_layers", "c_in_channels")

    def forward(self, x: Tensor, x_mask: Any = None, g: Tensor | None = None, **kwargs: Any) -> Any:
        out = self._fused(x, x_mask, g)
        return super().forward(x, x_mask, g, **kwargs) if out is None else out


BLOCKS: tuple[type[Block], ...] = (WN,)
