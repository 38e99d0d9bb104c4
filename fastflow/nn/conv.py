"""Convolutions with optional weight norm, under the published names of their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.packing import PackingModule

_G, _V = "parametrizations.weight.original0", "parametrizations.weight.original1"


def fold(weight_v: Tensor, weight_g: Tensor) -> Tensor:
    """Return g * v / ||v||, the norm taken per output channel (Salimans & Kingma 2016, eq. 2).

    A row of zeros, whose direction is undefined, gives NaN, as in PyTorch.
    """
    return torch._weight_norm(weight_v, weight_g, 0)


def unfold(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return v and g with g * v / ||v|| = `weight` [C_out, ...], in float32 or wider: v is the weight, g its norms.

    A row of zeros has no direction: its v is a row of ones and its g zero, which gives the zeros back where 0 / 0 would
    not.
    """
    # Squares in float64 neither overflow nor vanish for anything a narrower type can hold.
    norms = weight.double().square().sum(dim=tuple(range(1, weight.dim())), keepdim=True).sqrt()
    dtype = torch.promote_types(weight.dtype, torch.float32)  # norms rounded to half would change the weight
    return weight.to(dtype).masked_fill(norms == 0, 1.0), norms.to(dtype)


class NormedConv(PackingModule[Tensor]):
    """The weight and the bias of a convolution, with optional weight norm over dimension 0 of the weight.

    With weight norm the parameters are `bias`, `weight_g` [C, 1, ...] and `weight_v` [C, ...], the names of
    `torch.nn.utils.weight_norm`, in whose order published checkpoints list them; without it, `weight` and `bias`.
    `load_state_dict` takes all three spellings in both cases: g/v, `parametrizations.weight.original0/1` and a plain
    `weight`.

    Args:
        weight_shape: of the weight; a bias has one value for each of `out_channels`.
        out_channels: C_out.
        fan_in: initial values are uniform within 1 / sqrt(fan_in), as PyTorch's convolutions start.
        bias: whether there is one.
        weight_norm: whether the weight is stored as direction and length.
    """

    bias: nn.Parameter | None
    weight: nn.Parameter | None
    weight_g: nn.Parameter | None
    weight_v: nn.Parameter | None

    def __init__(
        self,
        weight_shape: Sequence[int],
        out_channels: int,
        fan_in: int,
        *,
        bias: bool = True,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        weight = torch.empty(*weight_shape).uniform_(-bound, bound)
        # registered bias first, as the published modules list them
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        )
        if weight_norm:
            self._set_weight_norm(weight)
        else:
            self._set_plain(weight)

    def _set_weight_norm(self, weight: Tensor) -> None:
        self.register_parameter("weight", None)
        weight_v, weight_g = unfold(weight)
        self.weight_g = nn.Parameter(weight_g)
        self.weight_v = nn.Parameter(weight_v.clone())

    def _set_plain(self, weight: Tensor) -> None:
        self.register_parameter("weight_g", None)
        self.register_parameter("weight_v", None)
        self.weight = nn.Parameter(weight)

    @property
    def has_weight_norm(self) -> bool:
        """Whether the weight is stored as direction and length."""
        return self.weight_v is not None

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        stored = self.weight if self.weight_v is None else self.weight_v
        assert stored is not None
        return stored.shape

    def stored(self) -> list[Tensor]:
        """Return the tensors of weight and bias; also in DataParallel's replicas, whose `parameters()` are empty."""
        return [t for t in (self.weight, self.weight_g, self.weight_v, self.bias) if t is not None]

    def folded_weight(self) -> Tensor:
        """Return the weight that the convolution uses, computed anew; differentiable."""
        if self.weight_v is None:
            assert self.weight is not None
            return self.weight
        assert self.weight_g is not None
        return fold(self.weight_v, self.weight_g)

    def _folded_once(self) -> Tensor:
        assert self.weight_v is not None and self.weight_g is not None
        return self._packed.get((self.weight_v, self.weight_g), self.folded_weight)

    def remove_weight_norm(self) -> None:
        """Replace g and v by the weight they stand for; does nothing where there is no weight norm."""
        if self.has_weight_norm:
            assert self.weight_v is not None
            learned = self.weight_v.requires_grad
            self._set_plain(self.folded_weight().detach())
            assert self.weight is not None
            self.weight.requires_grad_(learned)

    def _used_weight(self) -> Tensor:
        """Return the weight that the convolution uses, folded once where nothing is learned."""
        return self.folded_weight() if self.weight is not None else self._folded_once()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Rewrite the spelling found to the one in use, then load as usual."""
        found = {
            key: state_dict[prefix + name]
            for name, key in ((_G, "g"), (_V, "v"), ("weight_g", "g"), ("weight_v", "v"), ("weight", "w"))
            if prefix + name in state_dict
        }
        if self.has_weight_norm and "v" not in found and "w" in found:
            weight_v, weight_g = unfold(found["w"])
            self._respell(state_dict, prefix, weight_g=weight_g, weight_v=weight_v)
        elif self.has_weight_norm and {"g", "v"} <= found.keys():
            self._respell(state_dict, prefix, weight_g=found["g"], weight_v=found["v"])
        elif not self.has_weight_norm and {"g", "v"} <= found.keys():
            self._respell(state_dict, prefix, weight=fold(found["v"], found["g"]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _respell(state_dict: dict[str, Any], prefix: str, **tensors: Tensor) -> None:
        for name in (_G, _V, "weight_g", "weight_v", "weight"):
            state_dict.pop(prefix + name, None)
        for name, tensor in tensors.items():
            state_dict[prefix + name] = tensor


class Conv1d(NormedConv):
    """Convolution [B, C_in, T] -> [B, C_out, T], stride 1, zero "same" padding.

    The weight is [C_out, C_in, k]; `NormedConv` says how it is stored. Initial values are those of `torch.nn.Conv1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        bias: bool = True,
        weight_norm: bool = True,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd; got {kernel_size}")
        shape = (out_channels, in_channels, kernel_size)
        super().__init__(shape, out_channels, in_channels * kernel_size, bias=bias, weight_norm=weight_norm)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution [B, C_out, T] of `x` [B, C_in, T]; an empty time axis stays empty."""
        weight = self._used_weight()
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], weight.shape[0], 0)
        padding = self.dilation * (weight.shape[2] - 1) // 2
        return F.conv1d(x, weight, self.bias, padding=padding, dilation=self.dilation)

    def channels_last(self, x: Tensor) -> Tensor:
        """Return the same as `forward`, for a kernel of size 1, with the channels beside each other in memory."""
        weight = self._used_weight()
        return F.linear(x.transpose(1, 2), weight[:, :, 0], self.bias).transpose(1, 2)

    def extra_repr(self) -> str:
        out, into, kernel = self.shape
        return f"{into}, {out}, {kernel}, dilation={self.dilation}, weight_norm={self.has_weight_norm}"


def remove_weight_norm(module: nn.Module) -> None:
    """Replace weight norm by the plain weights it stands for in every convolution of `module`, in place."""
    for part in module.modules():
        if isinstance(part, NormedConv):
            part.remove_weight_norm()
