"""DiffWave, lmnt-com/diffwave, and the diffusion network of DiffSinger and so-vits-svc, which has the same blocks."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn
from fastflow.stacks.gated import as_cond
from fastflow.stacks.layers import LayerList, swapped


class Layers(LayerList):
    """The residual blocks of DiffWave: the step's projection is added to each convolution's input.

    In the gate the sigmoid's rows come first; residual sums times sqrt(0.5).
    """

    stack = "DiffWave"

    @classmethod
    def _knows_layer(cls, layer: nn.Module) -> bool:
        names = ("dilated_conv", "diffusion_projection", "conditioner_projection", "output_projection")
        return all(hasattr(layer, name) for name in names) and cls.takes(layer)

    @classmethod
    def _layer_convolutions(cls, layer: Any) -> dict[str, Any]:
        names = ("dilated_conv", "conditioner_projection", "output_projection")
        return {name: getattr(layer, name) for name in names if getattr(layer, name) is not None}

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        layer = module[0]
        arguments = {
            "x": randn(2, layer.dilated_conv.in_channels, 9),
            "diffusion_step": randn(2, layer.diffusion_projection.in_features),
            "conditioner": None,
        }
        if layer.conditioner_projection is not None:
            arguments["conditioner"] = randn(2, layer.conditioner_projection.in_channels, 9)
        return [arguments]

    def _pack(self) -> Weights:
        layers = self._layers()
        cond = [layer.conditioner_projection for layer in layers if layer.conditioner_projection is not None]
        return Weights(
            [swapped(convs.weight(layer.dilated_conv)) for layer in layers],
            [swapped(layer.dilated_conv.bias) for layer in layers if layer.dilated_conv.bias is not None],
            [convs.weight(layer.output_projection)[:, :, 0] for layer in layers],
            [layer.output_projection.bias for layer in layers if layer.output_projection.bias is not None],
            [swapped(convs.weight(conv)[:, :, 0]) for conv in cond],
            [swapped(conv.bias) for conv in cond if conv.bias is not None],
        )

    def all_layers(self, x: Tensor, diffusion_step: Tensor, conditioner: Tensor | None = None) -> tuple[None, Tensor]:
        unconditional = self[0].conditioner_projection is None
        if not self._worth_it(x) or (conditioner is None) != unconditional:  # where the original fails, so does this
            return self._one_by_one(x=x, diffusion_step=diffusion_step, conditioner=conditioner)
        skips = self._stack(
            x,
            as_cond(conditioner, x),
            dilations=self._dilations(),
            input_biases=[layer.diffusion_projection(diffusion_step) for layer in self._layers()],
            res_scale=math.sqrt(0.5),
            last_residual=True,
        )
        return None, skips


class DiffSingerLayers(Layers):
    """The same blocks with their arguments in another order."""

    stack = "DiffSinger, so-vits-svc"

    def all_layers(self, x: Tensor, conditioner: Tensor, diffusion_step: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return super().all_layers(x, diffusion_step, conditioner)


BLOCKS: tuple[type[Block], ...] = (Layers, DiffSingerLayers)
