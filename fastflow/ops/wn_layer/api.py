"""Public face of `wn_layer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.wn_layer import reference

_DIFFERENTIABLE = 9  # h to input_bias


def _fake(h: Tensor, conv_weight: Tensor, conv_bias: Any, res_skip_weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    residual_rows = h.shape[1] if rest[-1] else 0
    skip_rows = res_skip_weight.shape[0] - residual_rows
    return h.new_empty(h.shape[0], residual_rows, h.shape[2]), h.new_empty(h.shape[0], skip_rows, h.shape[2])


def _fake_backward(grad_h: Tensor, grad_skip: Tensor, *rest: Any) -> list[Tensor]:
    inputs, needs = rest[:_DIFFERENTIABLE], rest[-1]
    return [
        x.new_empty(x.shape) if x is not None and need else grad_skip.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    ]


_wn_layer = registry.define("wn_layer", reference.wn_layer, _fake)
_wn_layer_backward = registry.define("wn_layer_backward", reference.wn_layer_backward, _fake_backward, backward=True)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _backward(ctx: Any, grad_h: Tensor, grad_skip: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    needs = [bool(n) for n in ctx.needs_input_grad[:_DIFFERENTIABLE]]
    grads = _wn_layer_backward(grad_h, grad_skip, *inputs, *ctx.options, needs)
    kept = [g if x is not None and n else None for g, x, n in zip(grads, inputs, needs, strict=False)]
    return (*kept, *[None] * (1 + len(ctx.options)))


_wn_layer.register_autograd(_backward, setup_context=_setup)


def check_layer(
    h: Tensor, conv_weight: Tensor, res_skip_weight: Tensor, residual: bool, dilation: int, name: str = "{}"
) -> None:
    """Raise ValueError unless the weights of a layer fit `h` [B, C, T] and each other.

    `name` turns an argument's name into the caller's, such as "{}s[3]".
    """
    channels = h.shape[1]
    weight = name.format("conv_weight")
    checks.check_shape(weight, conv_weight, "[2G, C, k]", (None, channels, None))
    if conv_weight.shape[0] % 2 or conv_weight.shape[2] % 2 == 0:
        raise ValueError(f"`{weight}` must be [2G, C, k] with k odd; got {list(conv_weight.shape)}")
    weight = name.format("res_skip_weight")
    checks.check_shape(weight, res_skip_weight, "[R + S, G]", (None, conv_weight.shape[0] // 2))
    if residual and res_skip_weight.shape[0] < channels:
        raise ValueError(
            f"`{weight}` must have at least C = {channels} rows, the residual's; got {list(res_skip_weight.shape)}"
        )
    if dilation < 1:
        raise ValueError(f"`{name.format('dilation')}` must be at least 1; got {dilation}")


def check_cond(
    h: Tensor, cond: Tensor | None, rows: int, cond_weight: Tensor | None, name: str = "cond_weight"
) -> None:
    """Raise ValueError unless cond is [B, C_c, T or 1] and fits `cond_weight` ([rows, C_c]) or has `rows` channels."""
    if cond is None:
        if cond_weight is not None:
            raise ValueError(f"`cond` must be given with `{name}`; got None")
        return
    checks.check_shape("cond", cond, "[B, C_c, T or 1]", (h.shape[0], None, None))
    if cond.shape[2] != 1 and cond.shape[2] != h.shape[2]:
        raise ValueError(f"`cond` must have 1 or T = {h.shape[2]} steps; got {list(cond.shape)}")
    if cond_weight is not None:
        checks.check_shape(name, cond_weight, "[2G, C_c]", (rows, cond.shape[1]))
    elif cond.shape[1] != rows:
        raise ValueError(f"`cond` without `{name}` must have {rows} channels, the gate's; got {list(cond.shape)}")


def wn_layer(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None = None,
    cond_weight: Tensor | None = None,
    cond_bias: Tensor | None = None,
    input_bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilation: int = 1,
    causal: bool = False,
    res_scale: float = 1.0,
    residual: bool = True,
) -> tuple[Tensor, Tensor]:
    """One layer of a WaveNet-style gated dilated convolution stack.

    Formula: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio"; as laid out in WaveGlow's `WN`::

        u = conv(h + input_bias, dilation) + cond_weight @ cond + cond_bias
        r = res_skip_weight @ (tanh(u[:, :G]) * sigmoid(u[:, G:])) + res_skip_bias
        h_out = (h + r[:, :C]) * res_scale * mask,   skip = r[:, C:]

    Args:
        h: [B, C, T].
        conv_weight: [2G, C, k], k odd.
        conv_bias: [2G] or None.
        res_skip_weight: [C + S, G], residual rows first; [S, G] when not `residual`.
        res_skip_bias: [C + S] (or [S]) or None.
        cond: conditioning [B, C_c, T], or [B, C_c, 1] for the whole length, or None.
        cond_weight: [2G, C_c]; None when `cond` is already projected, with C_c = 2G.
        cond_bias: [2G] or None.
        input_bias: [B, C] or [1, C], added before the convolution; its zero padding stays zero.
        mask: [B, 1, T] or None. No gradient flows to it.
        dilation: step between taps.
        causal: pad on the left only, instead of on both sides.
        res_scale: factor on the residual sum.
        residual: False for a last layer that has skip rows only.

    Returns:
        h_out [B, C, T] (no channels when not `residual`) and skip [B, S, T].

    Raises:
        TypeError: `h` is not a floating-point tensor.
        ValueError: a shape, dtype or device does not fit.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("h", h)
    checks.check_shape("h", h, "[B, C, T]", (None, None, None))
    check_layer(h, conv_weight, res_skip_weight, residual, dilation)
    rows = conv_weight.shape[0]
    check_cond(h, cond, rows, cond_weight)
    for name, bias, size in (
        ("conv_bias", conv_bias, rows),
        ("res_skip_bias", res_skip_bias, res_skip_weight.shape[0]),
        ("cond_bias", cond_bias, rows),
    ):
        if bias is not None:
            checks.check_shape(name, bias, "one value per row of its weight", (size,))
    if cond_bias is not None and cond_weight is None:
        raise ValueError("`cond_bias` must come with `cond_weight`; got it alone")
    if input_bias is not None:
        checks.check_shape("input_bias", input_bias, "[B or 1, C]", (None, h.shape[1]))
        if input_bias.shape[0] not in (1, h.shape[0]):
            raise ValueError(f"`input_bias` must be [B or 1, C]; got {list(input_bias.shape)} with B = {h.shape[0]}")
    names = (
        "h",
        "conv_weight",
        "conv_bias",
        "res_skip_weight",
        "res_skip_bias",
        "cond",
        "cond_weight",
        "cond_bias",
        "input_bias",
    )
    tensors = checks.autocast(
        h.device,
        h,
        conv_weight,
        conv_bias,
        res_skip_weight,
        res_skip_bias,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
    )
    first = tensors[0]
    assert first is not None
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        checks.check_like(name, tensor, "h", first)
    mask = checks.check_mask(mask, "h", first)
    h_out, skip = _wn_layer(*tensors, mask, dilation, causal, float(res_scale), residual)
    return h_out, skip
