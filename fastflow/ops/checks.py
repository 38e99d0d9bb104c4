"""Argument checks shared by the public functions: every message names argument, expected and got."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def shape_of(x: object) -> str:
    """Return how `x` is described after "got" in an error."""
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def check_shape(name: str, x: Tensor, layout: str, expected: Sequence[int | None]) -> None:
    """Raise ValueError unless `x` has the shape `expected`; None matches any size.

    `layout` is the shape in words, such as "[B, C, T]". TypeError if `x` is no tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor {layout}; got {type(x).__name__}")
    if x.dim() != len(expected):
        raise ValueError(f"`{name}` must be {layout}; got {list(x.shape)}")
    # Sizes are compared one by one, so that under torch.compile an unconstrained size stays symbolic.
    for size, want in zip(x.shape, expected, strict=True):
        if want is not None and size != want:
            sizes = ", ".join("*" if e is None else str(e) for e in expected)
            raise ValueError(f"`{name}` must be {layout}, here [{sizes}]; got {list(x.shape)}")


def check_like(name: str, x: Tensor | None, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless `x` (None passes) has the dtype and the device of `other`."""
    if x is None:
        return
    if x.dtype != other.dtype:
        raise ValueError(f"`{name}` must have the dtype of `{other_name}`, {other.dtype}; got {x.dtype}")
    if x.device != other.device:
        raise ValueError(f"`{name}` must be on the device of `{other_name}`, {other.device}; got {x.device}")


def check_floating(name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor; got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor; got {x.dtype}")


def check_mask(mask: Tensor | None, x_name: str, x: Tensor) -> Tensor | None:
    """Return `mask` in the dtype of `x`; raise ValueError unless it is [B, 1, T] on the device of `x`."""
    if mask is None:
        return None
    check_shape("mask", mask, f"[B, 1, T] of `{x_name}`", (x.shape[0], 1, x.shape[2]))
    if mask.device != x.device:
        raise ValueError(f"`mask` must be on the device of `{x_name}`, {x.device}; got {mask.device}")
    return mask.to(x.dtype)


def check_finite(name: str, x: Tensor) -> None:
    """Raise ValueError if `x` holds NaN or infinity: says how many and where the first is.

    Not while a CUDA graph is captured, which cannot wait for the answer.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count:
        first = bad.nonzero()[0].tolist()
        raise ValueError(f"`{name}` must be finite; got {count} non-finite of {x.numel()} values, the first at {first}")


def autocast_is_on(device: torch.device) -> bool:
    """Whether torch.autocast is on for the device; some devices, such as "meta", know no autocast."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operations compute in the dtype that they are given."""
    if not autocast_is_on(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_wide(device: torch.device, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in float32 or wider where autocast is on for the device, else as they are.

    The invertible operations call this: what a half-precision network computed meets float32 audio and parameters.
    """
    if not autocast_is_on(device):
        return tensors
    return tuple(t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def autocast(x_device: torch.device, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in the autocast dtype where autocast is on for the device, else as they are.

    The gated stack calls this, so that it behaves as convolutions do under torch.autocast.
    """
    if not autocast_is_on(x_device):
        return tensors
    dtype = torch.get_autocast_dtype(x_device.type)
    return tuple(t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors)
