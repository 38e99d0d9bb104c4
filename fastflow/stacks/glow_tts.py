"""Glow-TTS, jaywalnut310/glow-tts: modules.py, attentions.py; and Coqui's, glow_tts/glow.py. Its WN is that of VITS."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.ops.actnorm.api import actnorm
from fastflow.ops.invconv1x1.api import multiply
from fastflow.stacks.block import Block, Randn, on_cpu
from fastflow.stacks.couplings import ON_A_CPU, couple, formula_is_faster
from fastflow.stacks.gated import arguments, as_mask

ARGUMENTS = {("x", "x_mask", "reverse", "kwargs"), ("x", "x_mask", "reverse", "g", "kwargs")}


def _example(channels: int, randn: Randn, **more: Any) -> list[dict[str, Any]]:
    x, mask = randn(2, channels, 11), torch.ones_like(randn(2, 1, 11))
    mask[1, :, 7:] = 0
    return [{"x": x, "x_mask": mask, "reverse": reverse, **more} for reverse in (False, True)]


def _steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many steps each item has, [B] in the dtype of x."""
    return x.new_full((x.shape[0],), x.shape[2]) if mask is None else mask.sum((1, 2))


class Coupling(Block):
    """`attentions.CouplingBlock`: (m + x exp(s)) * mask with [m; s] from start, gated stack and end."""

    stack = "Glow-TTS"
    op = "affine_coupling"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        names = ("start", "end", "wn", "sigmoid_scale", "in_channels")
        return all(hasattr(module, name) for name in names) and arguments(module) in ARGUMENTS

    @classmethod
    def objection(cls, module: Any) -> str | None:
        rows = module.end.out_channels
        return None if rows == module.in_channels else f"`end` returns {rows} channels for {module.in_channels}"

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        return ON_A_CPU if on_cpu(module) else None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        return _example(module.in_channels, randn)

    def forward(
        self, x: Tensor, x_mask: Any = None, reverse: bool = False, g: Tensor | None = None, **kwargs: Any
    ) -> Any:
        kept, moved = x.chunk(2, 1)
        mask = 1 if x_mask is None else x_mask
        network: Any = self
        shift, log_scale = network.end(network.wn(network.start(kept) * mask, mask, g)).chunk(2, 1)
        if self.sigmoid_scale:
            log_scale = torch.log(1e-6 + torch.sigmoid(log_scale + 2))
        moved, log_det = couple(moved, shift, log_scale, mask, reverse=reverse)
        return torch.cat([kept, moved], 1), None if reverse else log_det


def _stored(module: nn.Module) -> Any:
    """Return the inverse that `store_inverse` has left in an `InvConvNear`, or None."""
    return getattr(module, "weight_inv", None)


class InvConvNear(Block):
    """`modules.InvConvNear`: one [n, n] matrix over groups of n channels, n / 2 from each half of the channels.

    With the n channels of a group beside each other, that is the same 1x1 convolution at C / n * T steps. The inverse
    is kept between calls until the weight changes. On a CPU that is all there is to gain, and what needs no inverse,
    or a new one for its gradient, is the original's.
    """

    stack = "Glow-TTS"
    op = "invconv1x1"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return type(module).__name__ == "InvConvNear" and arguments(module) in ARGUMENTS

    @classmethod
    def objection(cls, module: Any) -> str | None:
        n = cls._split(module)
        return None if module.weight.shape == (n, n) else f"`weight` is {list(module.weight.shape)}, not [{n}, {n}]"

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        stored = _stored(module) is not None
        return "on a CPU there is only its inverse to keep, which it does" if stored and on_cpu(module) else None

    @classmethod
    def backend(cls, module: nn.Module) -> tuple[str, str]:
        if on_cpu(module):
            return "reference", "with a kept inverse, and without a call that costs more than it saves"
        return super().backend(module)

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        return _example(module.channels, randn)

    @staticmethod
    def _split(module: Any) -> int:
        """Return n, which Coqui calls by another name."""
        return int(module.num_splits if hasattr(module, "num_splits") else module.n_split)

    def forward(self, x: Tensor, x_mask: Any = None, reverse: bool = False, **kwargs: Any) -> Any:
        if (not reverse or torch.is_grad_enabled() or _stored(self) is not None) and formula_is_faster(x):
            return super().forward(x, x_mask, reverse, **kwargs)
        batch, channels, time = x.shape
        n = self._split(self)
        weight: Any = self.weight  # in DataParallel's replicas a plain attribute
        mask = as_mask(x_mask, x)
        log_det: Any = None
        if reverse:
            matrix = _stored(self)
            if matrix is None:
                matrix = self._fastflow.get([weight], lambda: torch.inverse(weight.float()).to(weight.dtype))
        else:
            matrix = weight
            log_det = 0
            if not self.no_jacobian:
                log_det = torch.logdet(weight) * (channels / n) * _steps(x, mask)
        groups = x.reshape(batch, 2, channels // n, n // 2, time).transpose(2, 3).reshape(batch, n, -1)
        groups = F.conv1d(groups, matrix[:, :, None]) if formula_is_faster(x) else multiply(groups, matrix)
        z = groups.view(batch, 2, n // 2, channels // n, time).transpose(2, 3).reshape(x.shape)
        return z if mask is None else z * mask, log_det


class ActNorm(Block):
    """`modules.ActNorm`, (bias + x exp(logs)) * mask: `fastflow.ops.actnorm` with loc = bias exp(-logs)."""

    stack = "Glow-TTS"
    op = "actnorm"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        names = ("logs", "bias", "initialized")
        return all(hasattr(module, name) for name in names) and arguments(module) in ARGUMENTS

    @classmethod
    def objection(cls, module: Any) -> str | None:
        return None if module.initialized else "it has not seen the data that it starts from"

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        return ON_A_CPU if on_cpu(module) else None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        return _example(module.channels, randn)

    def forward(self, x: Tensor, x_mask: Any = None, reverse: bool = False, **kwargs: Any) -> Any:
        if not self.initialized:
            return super().forward(x, x_mask, reverse, **kwargs)
        bias: Any = self.bias  # in DataParallel's replicas plain attributes
        logs: Any = self.logs
        mask, scale = as_mask(x_mask, x), torch.exp(logs)
        z, _ = actnorm(x, bias / scale, scale, mask=mask, reverse=reverse)
        return z, None if reverse else torch.sum(logs) * _steps(x, mask)


BLOCKS: tuple[type[Block], ...] = (Coupling, InvConvNear, ActNorm)
