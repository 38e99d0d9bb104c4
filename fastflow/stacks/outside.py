"""Blocks that resemble the gated stack and are none: named in the report, and left as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from fastflow.stacks.block import Block
from fastflow.stacks.gated import arguments


class _Outside(Block):
    op = ""
    why: ClassVar[str]

    @classmethod
    def objection(cls, module: nn.Module) -> str | None:
        return cls.why


class SqueezeWaveWN(_Outside):
    """The network of tianrengao/SqueezeWave.

    Only its gate would have an operation. With that the network takes 0.95 to 1.2 times as long on a CPU.
    """

    stack = "SqueezeWave"
    why = "its layers are batch normalisation, depthwise and pointwise convolutions without skips"

    @classmethod
    def knows(cls, module: Any) -> bool:
        names = ("n_channels", "n_layers", "start", "end", "cond_layer", "res_skip_layers", "in_layers")
        return all(hasattr(module, name) for name in names) and all(
            isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.BatchNorm1d) for layer in module.in_layers
        )


class RadttsWN(_Outside):
    """`WN` of RADTTS, in NeMo and its own repository."""

    stack = "RADTTS"
    why = "its layers have no gate"

    @classmethod
    def knows(cls, module: Any) -> bool:
        names = ("n_channels", "n_layers", "start", "end", "in_layers", "res_skip_layers", "softplus")
        return all(hasattr(module, name) for name in names) and arguments(module)[:1] == ("forward_input",)


class WaveFlowBlock(_Outside):
    """`ResidualBlock` of WaveFlow."""

    stack = "WaveFlow"
    why = "its convolution has two dimensions"

    @classmethod
    def knows(cls, module: Any) -> bool:
        parts = [getattr(module, name, None) for name in ("conv", "condition_proj", "out_proj")]
        return all(isinstance(part, nn.Conv2d) for part in parts)


class TransformerFlow(_Outside):
    """`TransformerCouplingBlock` of MeloTTS and Bert-VITS2; its couplings are replaced, not their networks."""

    stack = "MeloTTS, Bert-VITS2"
    why = "its networks are transformers"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return type(module).__name__ == "TransformerCouplingBlock" and hasattr(module, "flows")


BLOCKS: tuple[type[Block], ...] = (SqueezeWaveWN, RadttsWN, WaveFlowBlock, TransformerFlow)
