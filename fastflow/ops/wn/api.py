"""Public face of `wn`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.wn import reference
from fastflow.ops.wn_layer.api import check_cond, check_layer

_DIFFERENTIABLE = 9  # h to input_biases; the mask and the options follow


def _skip_channels(h: Tensor, res_skip_weights: Sequence[Tensor], last_residual: bool) -> int:
    return res_skip_weights[-1].shape[0] - (h.shape[1] if last_residual else 0)


def _fake(h: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(h.shape[0], _skip_channels(h, rest[2], rest[-1]), h.shape[2])


def _fake_backward(grad: Tensor, *rest: Any) -> list[Tensor]:
    inputs, needs = rest[:_DIFFERENTIABLE], rest[-1]
    grads = []
    for x, need in zip(inputs, needs, strict=True):
        for tensor in x if isinstance(x, list | tuple) else [] if x is None else [x]:
            grads.append(tensor.new_empty(tensor.shape) if need else grad.new_empty(0))
    return grads


_wn = registry.define("wn", reference.wn, _fake)
_wn_backward = registry.define("wn_backward", reference.wn_backward, _fake_backward, backward=True)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = inputs[: _DIFFERENTIABLE + 1]
    ctx.save_for_backward(*[t for x in tensors for t in (x if isinstance(x, list | tuple) else [x])])
    ctx.lengths = [len(x) if isinstance(x, list | tuple) else None for x in tensors]
    ctx.options = inputs[_DIFFERENTIABLE + 1 :]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = iter(ctx.saved_tensors)
    inputs = [next(saved) if n is None else [next(saved) for _ in range(n)] for n in ctx.lengths]
    needs = [any(n) if isinstance(n, list | tuple) else bool(n) for n in ctx.needs_input_grad[:_DIFFERENTIABLE]]
    flat = iter(_wn_backward(grad, *inputs, *ctx.options, needs))
    grads: list[Any] = []
    for x, need in zip(inputs[:_DIFFERENTIABLE], needs, strict=True):
        if isinstance(x, list):
            items = [next(flat) for _ in x]
            grads.append(items if need else [None] * len(x))
        else:
            item = None if x is None else next(flat)
            grads.append(item if need else None)
    return (*grads, *[None] * (1 + len(ctx.options)))


_wn.register_autograd(_backward, setup_context=_setup)
registry.implement("reference", "wn_again", reference.layered.again)
registry.implement("reference", "wn_again_backward", reference.layered.backward)


class _RunsOnce(torch.autograd.Function):
    """`wn` that keeps what its backward would otherwise compute again; its backward can run once."""

    @staticmethod
    def forward(ctx: Any, parts: tuple[Any, Any], inputs: list[Any], options: tuple[Any, ...], *flat: Tensor) -> Tensor:
        again, ctx.go_back = parts
        ctx.inputs, ctx.options = inputs, options
        with checks.no_autocast(flat[0].device):
            out, ctx.kept = again(*inputs, *options)
        result: Tensor = out.contiguous()
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rest = iter(ctx.needs_input_grad[3:])
        given = [x if isinstance(x, list) else [] if x is None else [x] for x in ctx.inputs]
        needs = [any(list(itertools.islice(rest, len(x)))) for x in given]  # a list first: `any` stops at the first
        with checks.no_autocast(grad.device):
            grads = ctx.go_back(grad.contiguous(), ctx.kept, *ctx.inputs, *ctx.options, needs)
        wanted = [need for x, need in zip(given, needs, strict=True) for _ in x]
        return (None, None, None, *[g if need else None for g, need in zip(grads, wanted, strict=True)])


_local = threading.local()


@contextmanager
def running_once() -> Iterator[None]:
    """Let `wn` keep each layer's state in this thread, for a backward that follows at once and runs once.

    Else that backward runs the block a second time to have them. Backends that do not tell the two apart run as usual.
    """
    before, _local.once = getattr(_local, "once", False), True
    try:
        yield
    finally:
        _local.once = before


def _check_phases(h: Tensor, cond: Tensor | None, cond_weights: Sequence[Tensor], i: int, rows: int) -> None:
    """Raise ValueError unless layer i has a weight [P, rows, C_c] with the P of layer 0 that fits `cond` and `h`."""
    if cond is None:
        raise ValueError(f"`cond` must be given with `cond_weights[{i}]`; got None")
    checks.check_shape("cond", cond, "[B, C_c, T / P]", (h.shape[0], None, None))
    phases = cond_weights[0].shape[0]
    checks.check_shape(f"cond_weights[{i}]", cond_weights[i], "[P, 2G, C_c]", (phases, rows, cond.shape[1]))
    if phases == 0:
        raise ValueError(f"`cond_weights[{i}]` must have at least one phase; got {list(cond_weights[i].shape)}")
    if h.shape[2] != cond.shape[2] * phases:
        raise ValueError(
            f"`h` must have P = {phases} steps, one per phase of `cond_weights`, for each of the {cond.shape[2]} of "
            f"`cond`; got {list(h.shape)}"
        )


def wn(
    h: Tensor,
    conv_weights: Sequence[Tensor],
    conv_biases: Sequence[Tensor],
    res_skip_weights: Sequence[Tensor],
    res_skip_biases: Sequence[Tensor],
    cond: Tensor | None = None,
    cond_weights: Sequence[Tensor] = (),
    cond_biases: Sequence[Tensor] = (),
    input_biases: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int],
    causal: bool = False,
    res_scale: float = 1.0,
    skip_scale: float = 1.0,
    last_residual: bool = False,
) -> Tensor:
    """A stack of L gated dilated convolution layers (see `wn_layer`) with summed skips.

    This one block, its weights re-laid, is the `WN` of WaveGlow, Glow-TTS and VITS and the residual stack of
    Parallel WaveGAN, DiffWave and FloWaveNet. An empty sequence means that no layer has that argument.

    Args:
        h: [B, C, T].
        conv_weights: L tensors [2G, C, k], k odd.
        conv_biases: L tensors [2G], or empty.
        res_skip_weights: L tensors [C + S, G], residual rows first; the last is [S, G] unless `last_residual`.
        res_skip_biases: L tensors, one value per row of these, or empty.
        cond: conditioning [B, C_c, T], [B, C_c, 1] for the whole length, [B, C_c, T / P] with weights for P phases,
            or None.
        cond_weights: L tensors [2G, C_c]; empty when `cond` is already projected: [B, L * 2G, T or 1], layer by layer.
            Or L tensors [P, 2G, C_c], a weight for each of P phases: step t is conditioned by cond[:, :, t // P]
            through weight t % P. T is then a multiple of P. So a linear upsampler that makes P steps of a frame can be
            composed with the weights.
        cond_biases: L tensors [2G], or [P, 2G] with weights for P phases, or empty.
        input_biases: L tensors [B or 1, C] added before each convolution, or empty.
        mask: [B, 1, T] or None, applied to h after each layer and to the result. No gradient flows to it.
        dilations: L dilations.
        causal: pad on the left only, instead of on both sides.
        res_scale: factor on each residual sum.
        skip_scale: factor on the sum of the skips.
        last_residual: the last layer has residual rows too; they are not used.

    Returns:
        [B, S, T].

    Raises:
        TypeError: `h` is not a floating-point tensor.
        ValueError: a shape, dtype, device or count does not fit.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("h", h)
    checks.check_shape("h", h, "[B, C, T]", (None, None, None))
    count = len(conv_weights)
    if count == 0:
        raise ValueError("`conv_weights` must have one tensor per layer; got none")
    lists = {
        "conv_weights": conv_weights,
        "conv_biases": conv_biases,
        "res_skip_weights": res_skip_weights,
        "res_skip_biases": res_skip_biases,
        "cond_weights": cond_weights,
        "cond_biases": cond_biases,
        "input_biases": input_biases,
    }
    required = ("conv_weights", "res_skip_weights")
    for name, items in (*lists.items(), ("dilations", dilations)):
        if len(items) != count and (len(items) or name in (*required, "dilations")):
            raise ValueError(f"`{name}` must have {count} entries, one per layer; got {len(items)}")
    skip_channels = _skip_channels(h, res_skip_weights, last_residual)
    phased = len(cond_weights) > 0 and cond_weights[0].dim() == 3
    for i in range(count):
        residual = last_residual or i < count - 1
        check_layer(h, conv_weights[i], res_skip_weights[i], residual, dilations[i], name=f"{{}}s[{i}]")
        expected = (h.shape[1] if residual else 0) + skip_channels
        if res_skip_weights[i].shape[0] != expected:
            raise ValueError(
                f"`res_skip_weights[{i}]` must have {expected} rows, residual and skip; "
                f"got {list(res_skip_weights[i].shape)}"
            )
        rows = conv_weights[i].shape[0]
        if phased:
            _check_phases(h, cond, cond_weights, i, rows)
        elif cond is None or cond_weights:
            weight = cond_weights[i] if cond_weights else None
            check_cond(h, cond, rows, weight, f"cond_weights[{i}]")
        for name, size in (("conv_biases", rows), ("cond_biases", rows), ("res_skip_biases", expected)):
            if not lists[name]:
                continue
            by_phase = phased and name == "cond_biases" and lists[name][i].dim() == 2
            shape = (cond_weights[i].shape[0], size) if by_phase else (size,)
            checks.check_shape(f"{name}[{i}]", lists[name][i], "one value per row of its weight", shape)
        if input_biases:
            checks.check_shape(f"input_biases[{i}]", input_biases[i], "[B or 1, C]", (None, h.shape[1]))
            if input_biases[i].shape[0] not in (1, h.shape[0]):
                raise ValueError(f"`input_biases[{i}]` must be [B or 1, C]; got {list(input_biases[i].shape)}")
    if cond is not None and not cond_weights:
        check_cond(h, cond, sum(w.shape[0] for w in conv_weights), None, "cond_weights")
    if cond_biases and not cond_weights:
        raise ValueError("`cond_biases` must come with `cond_weights`; got them alone")

    first, projected = checks.autocast(h.device, h, cond)
    assert first is not None
    checks.check_like("cond", projected, "h", first)
    cast = {name: list(checks.autocast(h.device, *items)) for name, items in lists.items()}
    for name, items in cast.items():
        for i, tensor in enumerate(items):
            checks.check_like(f"{name}[{i}]", tensor, "h", first)
    mask = checks.check_mask(mask, "h", first)
    inputs = [
        first,
        cast["conv_weights"],
        cast["conv_biases"],
        cast["res_skip_weights"],
        cast["res_skip_biases"],
        projected,
        cast["cond_weights"],
        cast["cond_biases"],
        cast["input_biases"],
    ]
    options = (mask, list(dilations), causal, float(res_scale), float(skip_scale), last_residual)
    once = not torch.compiler.is_compiling() and getattr(_local, "once", False) and torch.is_grad_enabled()
    parts = registry.parts_of_backward("wn", first, *inputs[1:]) if once else None
    if parts is not None:
        flat = [t for x in inputs for t in (x if isinstance(x, list) else [] if x is None else [x])]
        return _RunsOnce.apply(parts, inputs, options, *flat)  # type: ignore[no-any-return,no-untyped-call]
    out: Tensor = _wn(*inputs, *options)
    return out
