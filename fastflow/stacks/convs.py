"""The convolutions inside foreign blocks: what they hold, in each spelling of weight norm; whether they are plain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastflow.nn.conv import fold


def _normed(conv: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return v and g, or None where the weight is plain."""
    if "parametrizations" in conv._modules:
        lists: Any = conv.parametrizations
        return lists.weight.original1, lists.weight.original0
    if hasattr(conv, "weight_g"):
        return conv.weight_v, conv.weight_g  # type: ignore[return-value]
    return None


def stored(conv: nn.Module) -> list[Tensor]:
    """Return the tensors that weight and bias are computed from; also in DataParallel's replicas."""
    tensors: list[Any] = [*(_normed(conv) or (conv.weight,)), conv.bias]
    return [t for t in tensors if t is not None]


def weight(conv: nn.Module) -> Tensor:
    """Return the weight [C_out, C_in, k] that the convolution uses, computed from what is stored; differentiable.

    Under the hooks of `torch.nn.utils.weight_norm` the attribute `weight` is as old as the last forward.
    """
    normed = _normed(conv)
    return conv.weight if normed is None else fold(*normed)  # type: ignore[return-value]


def objection(conv: Any, name: str, *, causal: bool = False) -> str | None:
    """Return why the convolution called `name` is not one that our operations compute, or None.

    They have stride 1, one group, zero "same" padding (unless `causal`, where the padding is not looked at), perhaps
    weight norm over dimension 0, and no hooks or patched forward, which would not run.
    """
    kind = type(conv)
    if not isinstance(conv, nn.Conv1d) or (kind.forward, kind._conv_forward) != (
        nn.Conv1d.forward,
        nn.Conv1d._conv_forward,
    ):
        return f"`{name}` is a {kind.__name__}, not a plain convolution"
    if "forward" in conv.__dict__:
        return f"`{name}` has a `forward` of its own, which would not run"
    if conv.stride != (1,) or conv.groups != 1 or conv.padding_mode != "zeros":
        return f"`{name}` has stride {conv.stride[0]}, {conv.groups} groups and {conv.padding_mode} padding"
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    if (not causal and conv.padding not in ("same", (reach // 2,))) or conv.kernel_size[0] % 2 == 0:
        return f"`{name}` pads {conv.padding} where its kernel of {conv.kernel_size[0]} reaches {reach} steps"
    hooks = [*conv._forward_pre_hooks.values(), *conv._forward_hooks.values(), *conv._backward_hooks.values()]
    norms = [hook for hook in hooks if isinstance(hook, WeightNorm) and hook.name == "weight" and hook.dim == 0]
    if len(hooks) != len(norms) or len(norms) > 1 or conv._backward_pre_hooks:
        return f"`{name}` has hooks, which would not run"
    if "parametrizations" in conv._modules:
        lists: Any = conv.parametrizations
        parts = [part for name in lists for part in lists[name]]
        if list(lists) != ["weight"] or [type(part) for part in parts] != [_WeightNorm] or parts[0].dim != 0:
            return f"`{name}` has a parametrization other than weight norm over dimension 0"
    return None


def split_rows(conv: nn.Module, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return weights [rows, C_in] and biases [rows] of a 1x1 convolution that serves several layers at once."""
    biases: Any = conv.bias
    return list(torch.split(weight(conv)[:, :, 0], rows)), [] if biases is None else list(torch.split(biases, rows))
