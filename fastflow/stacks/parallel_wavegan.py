"""Parallel WaveGAN: kan-bayashi/ParallelWaveGAN, Coqui TTS and ESPnet, generators and the residual discriminator."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn
from fastflow.stacks.gated import as_cond
from fastflow.stacks.layers import LayerList


class _Layers(LayerList):
    """What the three have in common: `conv`, conditioning without bias in `conv1x1_aux` or none, `conv1x1_out`."""

    attributes: ClassVar[tuple[str, ...]]
    """Of a block, besides those."""

    @classmethod
    def _knows_layer(cls, layer: nn.Module) -> bool:
        names = ("conv", "conv1x1_aux", "conv1x1_out", *cls.attributes)
        return all(hasattr(layer, name) for name in names) and cls.takes(layer)

    @classmethod
    def _layer_convolutions(cls, layer: Any) -> dict[str, Any]:
        names = ("conv", "conv1x1_aux", "conv1x1_out", "conv1x1_skip")
        return {name: getattr(layer, name) for name in names if getattr(layer, name, None) is not None}

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        conv, aux = module[0].conv, module[0].conv1x1_aux
        x = randn(2, conv.in_channels, 9)
        return [{"x": x, "c": None}] if aux is None else [{"x": x, "c": randn(2, aux.in_channels, 9)}]

    @staticmethod
    def _out(layer: Any) -> tuple[Tensor, Tensor | None]:
        """Return weight [C + S, G, 1] and bias of a block's convolution after the gate: residual rows, then skip."""
        raise NotImplementedError

    def _pack(self) -> Weights:
        layers = self._layers()
        out = [self._out(layer) for layer in layers]
        aux = [layer.conv1x1_aux for layer in layers if layer.conv1x1_aux is not None]
        return Weights(
            [convs.weight(layer.conv) for layer in layers],
            [layer.conv.bias for layer in layers if layer.conv.bias is not None],
            [weight[:, :, 0] for weight, _ in out],
            [bias for _, bias in out if bias is not None],
            [convs.weight(conv)[:, :, 0] for conv in aux],
            [],
        )

    def _skips(self, x: Tensor, c: Tensor | None, res_scale: float, causal: bool = False) -> tuple[None, Tensor]:
        options: dict[str, Any] = {"causal": causal, "res_scale": res_scale, "last_residual": True}
        return None, self._stack(x, as_cond(c, x), dilations=self._dilations(), **options)


class Layers(_Layers):
    """The blocks of kan-bayashi's generator and residual discriminator; residual sums times sqrt(0.5)."""

    stack = "Parallel WaveGAN"
    attributes = ("conv1x1_skip", "dropout", "use_causal_conv")
    res_scale: ClassVar[float] = math.sqrt(0.5)

    @classmethod
    def _is_causal(cls, layer: Any) -> bool:
        return bool(layer.use_causal_conv)

    @staticmethod
    def _out(layer: Any) -> tuple[Tensor, Tensor | None]:
        out, skip = layer.conv1x1_out, layer.conv1x1_skip
        bias = None if out.bias is None else torch.cat([out.bias, skip.bias])
        return torch.cat([convs.weight(out), convs.weight(skip)]), bias

    def _dropout(self, layer: Any) -> float:
        return float(layer.dropout)

    def all_layers(self, x: Tensor, c: Tensor | None) -> tuple[None, Tensor]:
        if not self._worth_it(x):
            return self._one_by_one(x=x, c=c)
        return self._skips(x, c, self.res_scale, self._is_causal(self[0]))


class CoquiLayers(Layers):
    """The blocks of `TTS.vocoder`: the same but for a residual factor of 0.25, by which alone they are told apart."""

    stack = "Coqui TTS, Parallel WaveGAN"
    res_scale = 0.5**2


class ESPnetLayers(_Layers):
    """The blocks of `espnet2.gan_tts`, residual and skip in one convolution; those of its VITS are not scaled."""

    stack = "ESPnet, Parallel WaveGAN"
    attributes = ("conv1x1_glo", "dropout_rate", "scale_residual", "residual_channels")

    @classmethod
    def _knows_layer(cls, layer: Any) -> bool:
        return super()._knows_layer(layer) and layer.scale_residual

    @classmethod
    def objection(cls, module: Any) -> str | None:
        if any(layer.conv1x1_glo is not None for layer in module):
            return "its blocks have global conditioning"
        return super().objection(module)

    @staticmethod
    def _out(layer: Any) -> tuple[Tensor, Tensor | None]:
        return convs.weight(layer.conv1x1_out), layer.conv1x1_out.bias

    def _dropout(self, layer: Any) -> float:
        return float(layer.dropout_rate)

    def all_layers(
        self, x: Tensor, x_mask: Tensor | None = None, c: Tensor | None = None, g: Tensor | None = None
    ) -> tuple[None, Tensor]:
        if x_mask is not None or g is not None or not self._worth_it(x):  # nothing published gives a mask or g here
            return self._one_by_one(x=x, x_mask=x_mask, c=c, g=g)
        return self._skips(x, c, math.sqrt(0.5))


BLOCKS: tuple[type[Block], ...] = (Layers, CoquiLayers, ESPnetLayers)
