"""Blocks that are the gated stack `fastflow.ops.wn`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.ops.wn.api import wn
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn


def arguments(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what a module's forward takes."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


class GatedBlock(Block):
    """What gated stacks share: folded weights, kept, and the call of `fastflow.ops.wn`.

    A subclass names its convolutions in `_convolutions` and lays their weights out in `_pack`.
    """

    op = "wn"
    whole = True

    def _convolutions(self) -> list[nn.Module]:
        """Return the convolutions whose weights `_pack` uses."""
        raise NotImplementedError

    def _pack(self) -> Weights:
        """Return the weights as `fastflow.ops.wn` takes them."""
        raise NotImplementedError

    def _worth_it(self, x: Tensor) -> bool:
        """Whether the replacement is faster on `x` [B, C, T]. On a CPU two things are against it; the original runs.

        In training the original keeps what its backward needs, where ours computes the layers again: with the sizes of
        VITS, WaveGlow, FloWaveNet and Parallel WaveGAN, forward and backward took 1.0 to 1.3 times as long.

        A kernel packs its weights in each call. With VITS's sizes one step took 1.2 to 1.3 times as long as the
        original, or 2.2 times as long as one without weight norm; four steps 0.3 to 0.5, or 0.75 times as long.
        """
        if x.device.type != "cpu":
            return True
        return x.shape[2] >= 4 and not (self.training and torch.is_grad_enabled())

    def _stack(
        self,
        h: Tensor,
        cond: Tensor | None,
        mask: Tensor | None = None,
        *,
        dilations: Sequence[int],
        input_biases: Sequence[Tensor] = (),
        causal: bool = False,
        res_scale: float = 1.0,
        skip_scale: float = 1.0,
        last_residual: bool = False,
    ) -> Tensor:
        """Return the sum of skips [B, S, T] of `h` [B, C, T]; arguments as in `fastflow.ops.wn`.

        Without `cond` the conditioning convolutions are left out, with their biases.
        """
        tensors = [t for conv in self._convolutions() for t in convs.stored(conv)]
        weights = self._fastflow.get(tensors, lambda: self._pack().for_device())
        return wn(
            h,
            weights.conv_weights,
            weights.conv_biases,
            weights.res_skip_weights,
            weights.res_skip_biases,
            cond,
            [] if cond is None else weights.cond_weights,
            [] if cond is None else weights.cond_biases,
            input_biases,
            mask=mask,
            dilations=dilations,
            causal=causal,
            res_scale=res_scale,
            skip_scale=skip_scale,
            last_residual=last_residual,
        )


def as_mask(mask: Any, h: Tensor) -> Tensor | None:
    """Return a foreign `mask` as [B, 1, T], or None where it is None or the number 1."""
    if mask is None or not isinstance(mask, Tensor):
        return None
    return mask.expand(h.shape[0], 1, h.shape[2])


def as_cond(g: Tensor | None, h: Tensor) -> Tensor | None:
    """Return foreign conditioning [B or 1, C_c, T or 1] as [B, C_c, T or 1]."""
    return g if g is None or g.shape[0] == h.shape[0] else g.expand(h.shape[0], -1, -1)


class FusedWN(GatedBlock):
    """The WN of VITS and Glow-TTS, and what was made of it: `in_layers`, `res_skip_layers`, one `cond_layer`.

    Rows of `res_skip_layers.i`: residual, then skip; the last layer has skip rows only. While its dropout drops the
    original's forward runs: stacks place their dropout differently.
    """

    forward_arguments: ClassVar[tuple[str, ...]]
    """Of the original's forward: input, mask, conditioning."""
    attributes: ClassVar[tuple[str, ...]]
    """That tell this stack's WN from others: channels C first, number of layers second."""

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        parts = (*cls.attributes, "in_layers", "res_skip_layers")
        wanted = cls.forward_arguments
        without = tuple(name for name in wanted if name != "kwargs")  # which no original reads, and RVC's does not take
        return all(hasattr(module, name) for name in parts) and arguments(module) in (wanted, without)

    @classmethod
    def objection(cls, module: Any) -> str | None:
        channels, count = (getattr(module, name) for name in cls.attributes[:2])
        if len(module.in_layers) != count or len(module.res_skip_layers) != count:
            return f"it has {len(module.in_layers)} `in_layers` for {count} layers"
        if hasattr(module, "cond_layer") and (reason := convs.objection(module.cond_layer, "cond_layer")):
            return reason
        for i in range(count):
            rows = channels if i == count - 1 else 2 * channels
            for name, conv, into, out in (
                (f"in_layers.{i}", module.in_layers[i], channels, 2 * channels),
                (f"res_skip_layers.{i}", module.res_skip_layers[i], channels, rows),
            ):
                if reason := convs.objection(conv, name):
                    return reason
                if (conv.in_channels, conv.out_channels) != (into, out) or conv.bias is None:
                    return f"`{name}` is {conv}, not {into} to {out} channels with bias"
        return None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        x, mask, g = cls.forward_arguments[:3]
        h, ones = randn(2, getattr(module, cls.attributes[0]), 11), randn(2, 1, 11) * 0 + 1
        ones[1, :, 7:] = 0
        examples: list[dict[str, Any]] = [{x: h, mask: ones}]
        if hasattr(module, "cond_layer"):
            examples.append({x: h, mask: ones, g: randn(2, module.cond_layer.in_channels, 1)})
        return examples

    def _convolutions(self) -> list[nn.Module]:
        cond = [self.cond_layer] if hasattr(self, "cond_layer") else []
        return [*self.in_layers, *self.res_skip_layers, *cond]  # type: ignore[misc, list-item]

    def _pack(self) -> Weights:
        into: Any = self.in_layers
        out: Any = self.res_skip_layers
        cond_weights: list[Tensor] = []
        cond_biases: list[Tensor] = []
        if hasattr(self, "cond_layer"):
            cond_weights, cond_biases = convs.split_rows(self.cond_layer, into[0].out_channels)  # type: ignore[arg-type]
        return Weights(
            [convs.weight(c) for c in into],
            [c.bias for c in into],
            [convs.weight(c)[:, :, 0] for c in out],
            [c.bias for c in out],
            cond_weights,
            cond_biases,
        )

    def _drops(self) -> bool:
        """Whether something is dropped now: a dropout may be in training where the block is not, and the reverse."""
        return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in self._modules.values())

    def _fused(self, x: Tensor, mask: Any, g: Tensor | None) -> Tensor | None:
        """Return what forward returns, or None where the original has to run."""
        if self._drops() or not self._worth_it(x):
            return None
        if g is not None:
            _ = self.cond_layer  # without one the original fails here as well
        dilations = [conv.dilation[0] for conv in self.in_layers]  # type: ignore[union-attr]
        # under autocast the original's sum of skips keeps the dtype of its input
        return self._stack(x, as_cond(g, x), as_mask(mask, x), dilations=dilations).to(x.dtype)
