"""Public face of `flow_step`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.affine_coupling import api as coupling
from fastflow.ops.flow_step import reference

_TENSORS = 6  # x to early; the options follow


def _fake(
    x: Tensor,
    hidden: Tensor,
    end_weight: Tensor,
    end_bias: Tensor | None,
    weight: Tensor | None,
    early: Tensor | None,
    n_early: int,
    form: str,
    transform_first: bool,
    reverse: bool,
    log_det: bool,
) -> tuple[Tensor, Tensor]:
    channels = x.shape[1] + (0 if early is None else early.shape[1])
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.new_empty(x.shape[0], channels, x.shape[2])
    return y, x.new_empty(x.shape[0] if log_det else 0, dtype=accumulator)


def _fake_backward(grad: Tensor, grad_log_det: Tensor, *rest: Any) -> list[Tensor]:
    return [grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in rest[:_TENSORS]]


_flow_step = registry.define("flow_step", reference.flow_step, _fake)
_flow_step_backward = registry.define("flow_step_backward", reference.flow_step_backward, _fake_backward, backward=True)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    grads = _flow_step_backward(grad, grad_log_det, *ctx.saved_tensors, *ctx.options)
    given = [None if x is None else g for x, g in zip(ctx.saved_tensors, grads, strict=True)]
    return (*given, *[None] * len(ctx.options))


_flow_step.register_autograd(_backward, setup_context=_setup)


def flow_step(
    x: Tensor,
    hidden: Tensor,
    end_weight: Tensor,
    end_bias: Tensor | None = None,
    weight: Tensor | None = None,
    early: Tensor | None = None,
    *,
    n_early: int = 0,
    form: str = "exp",
    transform_first: bool = False,
    reverse: bool = False,
    log_det: bool = True,
) -> tuple[Tensor, Tensor]:
    """What lies between the gated stack of one flow and the next: end convolution, coupling, 1x1, early outputs.

    With kept and moved the halves of x, and shift and log scale the halves of the rows of
    o = `end_weight` hidden + `end_bias`, computed in the dtype of `hidden`:

        z = kept and affine_coupling(moved, shift, log scale), in their places
        y = cat(z[:n_early], weight z[n_early:])          forward; `weight` is the next flow's 1x1 convolution
        y = cat(early, weight z)                          reverse; `weight` is the inverse of this flow's own

    This order is WaveGlow's (Prenger et al. 2018, section 2 and its `glow.py`); the coupling's forms are in
    `affine_coupling`.

    Args:
        x: [B, C, T], C even.
        hidden: [B, S, T], what the coupling network gives to its last convolution. Its dtype may be a half-precision
            one where `x` is float32, as under autocast; else it is that of `x`.
        end_weight: that convolution's weight [C, S] (or [C, S, 1]): first C / 2 rows for the shift, then C / 2 for the
            log scale; [C / 2, S] for the form "additive". In the dtype of `hidden`.
        end_bias: one value per row, in the dtype of `hidden`, or None.
        weight: [C - n_early, C - n_early] (or [.., .., 1]), or None for the identity: the last flow's forward.
        early: [B, E, T], channels that join in front, or None; in reverse only.
        n_early: how many of the first channels leave: they are not multiplied by `weight`; forward only.
        form: "exp", "sigmoid" or "additive".
        transform_first: transform the first half by the second, instead of the second by the first.
        reverse: invert the coupling.
        log_det: False spares the sum of the log scales.

    Returns:
        y [B, C + E, T], and the coupling's log-determinant [B]: the log scale summed over channels and time, negated in
        reverse; float32, or float64 for float64 input. The 1x1 convolution's own is `steps * log |det weight|` and is
        not in it. Without `log_det` the second is empty, [0].

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `form` is unknown, a shape, dtype or device does not fit, or an option is given for the wrong
            direction.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("x", x)
    checks.check_shape("x", x, "[B, C, T]", (None, None, None))
    batch, channels, steps = x.shape
    if channels < 2 or channels % 2:
        raise ValueError(f"`x` must be [B, C, T] with C even; got {list(x.shape)}")
    coupling.check_form(form)
    if reverse and n_early:
        raise ValueError(f"`n_early` must be 0 in reverse, where channels join; got {n_early}")
    if not reverse and early is not None:
        raise ValueError(f"`early` must be None unless `reverse`; got {checks.shape_of(early)}")
    if not 0 <= n_early < channels:
        raise ValueError(f"`n_early` must leave at least one of the {channels} channels of `x`; got {n_early}")
    checks.check_shape("hidden", hidden, "[B, S, T] of `x`", (batch, None, steps))
    rows, layout = (channels // 2, "[C / 2, S]") if form == "additive" else (channels, "[C, S]")
    end_weight = _matrix(end_weight)
    checks.check_shape("end_weight", end_weight, layout, (rows, hidden.shape[1]))
    if end_bias is not None:
        checks.check_shape("end_bias", end_bias, "one value per row of `end_weight`", (rows,))
    if weight is not None:
        weight = _matrix(weight)
        checks.check_shape("weight", weight, "[C - n_early, C - n_early]", (channels - n_early,) * 2)
    if early is not None:
        checks.check_shape("early", early, "[B, E, T] of `x`", (batch, None, steps))

    # the convolution as convolutions are under autocast, what is invertible in float32
    half, end_w, end_b = checks.autocast(x.device, hidden, end_weight, end_bias)
    wide, product, first = checks.autocast_wide(x.device, x, weight, early)
    assert half is not None and end_w is not None and wide is not None
    if half.dtype != wide.dtype and not (wide.dtype == torch.float32 and half.dtype in (torch.float16, torch.bfloat16)):
        raise ValueError(
            f"`hidden` must have the dtype of `x`, {wide.dtype}, or be half precision where that is float32; "
            f"got {half.dtype}"
        )
    if half.device != wide.device:
        raise ValueError(f"`hidden` must be on the device of `x`, {wide.device}; got {half.device}")
    checks.check_like("end_weight", end_w, "hidden", half)
    checks.check_like("end_bias", end_b, "hidden", half)
    checks.check_like("weight", product, "x", wide)
    checks.check_like("early", first, "x", wide)
    y, total = _flow_step(wide, half, end_w, end_b, product, first, n_early, form, transform_first, reverse, log_det)
    return y, total


def _matrix(weight: Tensor) -> Tensor:
    """Return a convolution's weight [.., .., 1] as a matrix."""
    return weight[:, :, 0] if isinstance(weight, Tensor) and weight.dim() == 3 and weight.shape[2] == 1 else weight
