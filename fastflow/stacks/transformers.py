"""`VitsModel` of Hugging Face's transformers, modeling_vits.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastflow.stacks.block import Block
from fastflow.stacks.couplings import ResidualCoupling
from fastflow.stacks.gated import FusedWN


class WaveNet(FusedWN):
    """`VitsWaveNet`."""

    stack = "transformers VITS"
    forward_arguments = ("inputs", "padding_mask", "global_conditioning")
    attributes = ("hidden_size", "num_layers")

    def forward(self, inputs: Tensor, padding_mask: Any, global_conditioning: Tensor | None = None) -> Any:
        out = self._fused(inputs, padding_mask, global_conditioning)
        return super().forward(inputs, padding_mask, global_conditioning) if out is None else out


class Coupling(ResidualCoupling):
    """`VitsResidualCouplingLayer`, which never has a scale."""

    stack = "transformers VITS"
    parts = ("conv_pre", "wavenet", "conv_post")
    forward_arguments = ("inputs", "padding_mask", "global_conditioning", "reverse")
    mean_only_attribute = ""

    def forward(
        self, inputs: Tensor, padding_mask: Any, global_conditioning: Tensor | None = None, reverse: bool = False
    ) -> Any:
        y, log_det = self._coupled(inputs, padding_mask, global_conditioning, reverse)
        return y, None if reverse else log_det


BLOCKS: tuple[type[Block], ...] = (WaveNet, Coupling)
