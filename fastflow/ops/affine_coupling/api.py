"""Public face of `affine_coupling`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.affine_coupling import reference

FORMS = ("exp", "sigmoid", "additive")


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=accumulator)


def _fake_backward(
    grad: Tensor, grad_log_det: Tensor, x: Tensor, shift: Tensor, log_scale: Tensor | None, *rest: Any
) -> list[Tensor]:
    last = x.new_empty(0) if log_scale is None else x.new_empty(x.shape)
    return [x.new_empty(x.shape), x.new_empty(x.shape), last]


_affine_coupling = registry.define("affine_coupling", reference.affine_coupling, _fake)
_affine_coupling_backward = registry.define(
    "affine_coupling_backward", reference.affine_coupling_backward, _fake_backward, backward=True
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    x, shift, log_scale, mask = ctx.saved_tensors
    grads = _affine_coupling_backward(grad, grad_log_det, x, shift, log_scale, mask, *ctx.options)
    return grads[0], grads[1], None if log_scale is None else grads[2], None, None, None


_affine_coupling.register_autograd(_backward, setup_context=_setup)


def check_form(form: str) -> None:
    """Raise ValueError unless `form` is one of FORMS."""
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {', '.join(FORMS)}; got {form!r}")


def affine_coupling(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    form: str = "exp",
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Transform one half of the channels by the shift and scale computed from the other half.

    With s = `log_scale`, b = `shift`:

    - "exp": y = exp(s) * x + b (WaveGlow, Prenger et al. 2018, eq. 5; Glow-TTS, VITS); log scale s.
    - "sigmoid": y = (x + b) * sigmoid(s + 2) (openai/glow, `model.py`); log scale logsigmoid(s + 2).
    - "additive": y = x + b (NICE, Dinh et al. 2014); log scale 0.

    FloWaveNet's forward, (x - b) * exp(-s), is "exp" with `reverse=True`.

    Args:
        x: [B, C, T], the half to transform.
        shift: [B, C, T].
        log_scale: [B, C, T]; None exactly when `form` is "additive".
        mask: [B, 1, T] or None, multiplied onto y and onto the log scale. No gradient flows to it.
        form: "exp", "sigmoid" or "additive".
        reverse: compute x from y.

    Returns:
        y [B, C, T] and the log-determinant [B]: the log scale summed over channels and time, negated in reverse;
        float32, or float64 for float64 input.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `form` is unknown, or a shape, dtype or device does not fit.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("x", x)
    checks.check_shape("x", x, "[B, C, T]", (None, None, None))
    check_form(form)
    if (log_scale is None) != (form == "additive"):
        got = "None" if log_scale is None else checks.shape_of(log_scale)
        raise ValueError(f"`log_scale` must be None exactly when `form` is 'additive'; got {got} with {form!r}")
    wide_x, wide_shift, log_scale = checks.autocast_wide(x.device, x, shift, log_scale)
    assert wide_x is not None and wide_shift is not None
    x, shift = wide_x, wide_shift
    for name, tensor in (("shift", shift), ("log_scale", log_scale)):
        if tensor is not None:
            checks.check_shape(name, tensor, "[B, C, T] as `x`", tuple(x.shape))
            checks.check_like(name, tensor, "x", x)
    y, log_det = _affine_coupling(x, shift, log_scale, checks.check_mask(mask, "x", x), form, reverse)
    return y, log_det
