"""FloWaveNet, ksw0306/FloWaveNet: the gated layers of its networks, actnorm and the affine coupling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.ops.actnorm.api import actnorm
from fastflow.ops.affine_coupling.api import affine_coupling
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn, on_cpu
from fastflow.stacks.couplings import ON_A_CPU
from fastflow.stacks.gated import arguments, as_cond
from fastflow.stacks.layers import LayerList

_PAIRS = (("filter_conv", "gate_conv"), ("res_conv", "skip_conv"), ("filter_conv_c", "gate_conv_c"))


class Layers(LayerList):
    """`Wavenet.res_blocks`: separate convolutions for the halves of the gate, for residual and skip."""

    stack = "FloWaveNet"

    @classmethod
    def _knows_layer(cls, layer: nn.Module) -> bool:
        names = (*_PAIRS[0], "res_conv", "skip", "local_conditioning", "causal")
        return all(hasattr(layer, name) for name in names) and cls.takes(layer)

    @classmethod
    def _layer_convolutions(cls, layer: Any) -> dict[str, Any]:
        found = {name: getattr(layer, name, None) for pair in _PAIRS for name in pair}
        # the gate's are wrapped, so that they can be causal
        return {name: getattr(conv, "conv", conv) for name, conv in found.items() if conv is not None}

    @classmethod
    def _is_causal(cls, layer: Any) -> bool:
        return bool(layer.causal)

    @classmethod
    def objection(cls, module: Any) -> str | None:
        if not all(layer.skip for layer in module):
            return "its blocks have no skips"
        return super().objection(module)

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        found = cls._layer_convolutions(module[0])
        cond = found.get("filter_conv_c")
        x = randn(2, found["filter_conv"].in_channels, 9)
        return [{"tensor": x, "c": None if cond is None else randn(2, cond.in_channels, 9)}]

    def _pack(self) -> Weights:
        layers = [self._layer_convolutions(layer) for layer in self._layers()]

        def joined(pair: tuple[str, str]) -> tuple[list[Tensor], list[Tensor]]:
            both = [[layer[name] for name in pair] for layer in layers if pair[0] in layer]
            weights = [torch.cat([convs.weight(conv) for conv in two]) for two in both]
            return weights, [torch.cat([conv.bias for conv in two]) for two in both if two[0].bias is not None]

        (gated, gated_biases), (out, out_biases), (cond, cond_biases) = map(joined, _PAIRS)
        out, cond = ([weight[:, :, 0] for weight in weights] for weights in (out, cond))
        return Weights(gated, gated_biases, out, out_biases, cond, cond_biases)

    def all_layers(self, tensor: Tensor, c: Tensor | None = None) -> tuple[None, Tensor]:
        if not self._worth_it(tensor) or (c is None) == self[0].local_conditioning:  # where that fails, so does this
            return self._one_by_one(tensor=tensor, c=c)
        options: dict[str, Any] = {"causal": self._is_causal(self[0]), "res_scale": math.sqrt(0.5)}
        return None, self._stack(tensor, as_cond(c, tensor), dilations=self._dilations(), last_residual=True, **options)


class ActNorm(Block):
    """`ActNorm`, once it is initialised; before, the original runs and initialises it."""

    stack = "FloWaveNet"
    op = "actnorm"

    @classmethod
    def knows(cls, module: Any) -> bool:
        names = ("loc", "scale", "initialized", "logdet", "reverse")
        return all(hasattr(module, n) for n in names) and arguments(module) == ("x",) and module.loc.dim() == 3

    @classmethod
    def objection(cls, module: Any) -> str | None:
        return None

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        return ON_A_CPU if on_cpu(module) else None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        return [{"x": randn(2, module.loc.shape[1], 9)}] if module.initialized else []

    def forward(self, x: Tensor) -> Any:
        if not self.initialized:
            return super().forward(x)
        y, log_det = actnorm(x, self.loc, self.scale)  # type: ignore[arg-type]
        return (y, log_det.sum()) if self.logdet else y

    def reverse(self, output: Tensor) -> Tensor:
        return actnorm(output, self.loc, self.scale, reverse=True)[0]  # type: ignore[arg-type]


class AffineCoupling(Block):
    """`AffineCoupling`: log scale first, and its forward is what `fastflow.ops.affine_coupling` calls reverse."""

    stack = "FloWaveNet"
    op = "affine_coupling"

    @classmethod
    def knows(cls, module: Any) -> bool:
        names = ("net", "affine", "reverse")
        return all(hasattr(module, name) for name in names) and arguments(module) == ("x", "c")

    @classmethod
    def objection(cls, module: Any) -> str | None:
        return None

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        return ON_A_CPU if on_cpu(module) else None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        first = module.net.front_conv[0].conv.in_channels
        cond = module.net.res_blocks[0].filter_conv_c.in_channels
        return [{"x": randn(2, 2 * first, 9), "c": randn(2, 2 * cond, 9)}]

    def _moved(self, kept: Tensor, moved: Tensor, c: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        out: Tensor = self.net(kept, c.chunk(2, 1)[0])  # type: ignore[operator]
        if not self.affine:
            return affine_coupling(moved, out, form="additive", reverse=reverse)
        log_s, t = out.chunk(2, 1)
        return affine_coupling(moved, t, log_s, reverse=not reverse)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        kept, moved = x.chunk(2, 1)
        moved, log_det = self._moved(kept, moved, c, False)
        return torch.cat((kept, moved), 1), log_det.sum() if self.affine else None

    def reverse(self, output: Tensor, c: Tensor) -> Tensor:
        kept, moved = output.chunk(2, 1)
        return torch.cat((kept, self._moved(kept, moved, c, True)[0]), 1)


BLOCKS: tuple[type[Block], ...] = (Layers, ActNorm, AffineCoupling)
