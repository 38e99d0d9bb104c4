"""Public face of `actnorm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.actnorm import reference


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=accumulator)


def _fake_backward(
    grad: Tensor, grad_log_det: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *rest: Any
) -> list[Tensor]:
    return [x.new_empty(x.shape), loc.new_empty(loc.shape), scale.new_empty(scale.shape)]


_actnorm = registry.define("actnorm", reference.actnorm, _fake)
_actnorm_backward = registry.define("actnorm_backward", reference.actnorm_backward, _fake_backward, backward=True)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.reverse = inputs[4]


def _backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    return (*_actnorm_backward(grad, grad_log_det, *ctx.saved_tensors, ctx.reverse), None, None)


_actnorm.register_autograd(_backward, setup_context=_setup)


def actnorm(
    x: Tensor, loc: Tensor, scale: Tensor, *, mask: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Activation normalisation: y = scale * (x + loc), one loc and one scale per channel.

    Formula: Kingma & Dhariwal 2018, "Glow", section 3.1, as written in FloWaveNet's `ActNorm`. Glow-TTS's
    bias + exp(logs) * x is scale = exp(logs), loc = bias * exp(-logs).

    Args:
        x: [B, C, T].
        loc: [C] (or the published [1, C, 1]).
        scale: [C] (or [1, C, 1]), nowhere zero; may be negative.
        mask: [B, 1, T] or None, multiplied onto y; the log-determinant counts its steps. No gradient flows to it.
        reverse: compute x from y.

    Returns:
        y [B, C, T] and the log-determinant [B]: T (or the mask's sum) times the sum of log |scale|, negated in
        reverse; float32 or wider.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: a shape, dtype or device does not fit.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("x", x)
    checks.check_shape("x", x, "[B, C, T]", (None, None, None))
    (wide_x,) = checks.autocast_wide(x.device, x)
    assert wide_x is not None
    x = wide_x
    loc, scale = (p.reshape(-1) if isinstance(p, Tensor) and p.dim() == 3 else p for p in (loc, scale))
    for name, p in (("loc", loc), ("scale", scale)):
        checks.check_shape(name, p, "[C]", (x.shape[1],))
        checks.check_like(name, p, "x", x)
    y, log_det = _actnorm(x, loc, scale, checks.check_mask(mask, "x", x), reverse)
    return y, log_det


def actnorm_init(x: Tensor, *, mask: Tensor | None = None, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the data-dependent start: loc and scale [C] that give `actnorm(x)` zero mean and unit variance.

    loc = -mean, scale = 1 / (std + eps) over batch and time, with the unbiased standard deviation, as in FloWaveNet.

    Args:
        x: [B, C, T], with more than one step (that the mask, if given, lets through).
        mask: [B, 1, T] of zeros and ones, or None.
        eps: added to the standard deviation.

    Raises:
        ValueError: there are fewer than two steps to take a variance of.
    """
    checks.check_floating("x", x)
    checks.check_shape("x", x, "[B, C, T]", (None, None, None))
    dtype = x.dtype
    x = x if dtype == torch.float64 else x.float()  # sums over all steps overflow float16
    mask = checks.check_mask(mask, "x", x)
    weight = x.new_ones(x.shape[0], 1, x.shape[2]) if mask is None else mask
    count = weight.sum()
    if bool(count < 2):
        raise ValueError(f"`x` must have at least two steps to initialise from; got {int(count)}")
    mean = (x * weight).sum((0, 2)) / count
    variance = ((x - mean[:, None]).square() * weight).sum((0, 2)) / (count - 1)
    # a constant channel's scale is the largest that the dtype holds
    scale = (1 / (variance.sqrt() + eps)).clamp(max=torch.finfo(dtype).max)
    return -mean.to(dtype), scale.to(dtype)
