"""Arguments for every operation at awkward shapes, and what the tests of all operations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow import ops
from fastflow.bench.check import tensors as tensors
from fastflow.ops import registry

LENGTHS = (0, 1, 2, 7, 8, 9, 127, 128, 129, 130)
BACKENDS = [b for b in registry.BACKENDS if registry._unsupported(b, "gate", torch.zeros(1, 2, 1)) is None]
"""Those that take tensors on the CPU; `test_gpu.py` is for the others."""


class Case(NamedTuple):
    """One way to call an operation: `call(T, dtype)` makes the function's arguments."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[int, torch.dtype], tuple[tuple[Any, ...], dict[str, Any]]]


def _random(*shape: int, dtype: torch.dtype, layout: str = "plain", scale: float = 1.0) -> Tensor:
    """A random tensor of this shape; "strided": time is not the last dimension in memory; "offset": misaligned."""
    if layout == "strided" and len(shape) == 3:
        return (scale * torch.randn(shape[0], shape[2], shape[1], dtype=dtype)).transpose(1, 2)
    if layout == "offset":
        return (scale * torch.randn(*shape[:-1], shape[-1] + 3, dtype=dtype))[..., 3:]
    return scale * torch.randn(*shape, dtype=dtype)


def _mask(batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """Ragged lengths: item b ends b steps (or more) early."""
    lengths = torch.tensor([max(0, length - 2 * b) for b in range(batch)])
    return (torch.arange(length) < lengths[:, None])[:, None].to(dtype)


def _gate(layout: str) -> Callable[..., Any]:
    return lambda t, dtype: ((_random(2, 6, t, dtype=dtype, layout=layout, scale=3.0),), {})


def _wn_layer(
    layout: str = "plain",
    channels: int = 5,
    gate: int = 4,
    skip: int = 3,
    kernel: int = 3,
    dilation: int = 1,
    cond: str = "local",
    bias: bool = True,
    input_bias: int = 0,
    mask: bool = False,
    causal: bool = False,
    res_scale: float = 1.0,
    residual: bool = True,
    cond_channels: int = 6,
) -> Callable[..., Any]:
    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def r(*shape: int, scale: float = 0.5) -> Tensor:
            return _random(*shape, dtype=dtype, layout=layout, scale=scale)

        batch, rows = 2, 2 * gate
        cond_t = {
            "none": None,
            "local": lambda: r(batch, cond_channels, t),
            "global": lambda: r(batch, cond_channels, 1),
            "projected": lambda: r(batch, rows, t),
        }[cond]
        weighted = cond in ("local", "global")
        out = skip + (channels if residual else 0)
        args = (
            r(batch, channels, t, scale=1.0),
            r(rows, channels, kernel),
            r(rows) if bias else None,
            r(out, gate),
            r(out) if bias else None,
            None if cond_t is None else cond_t(),
            r(rows, cond_channels) if weighted else None,
            r(rows) if weighted and bias else None,
            r(input_bias, channels) if input_bias else None,
            _mask(batch, t, dtype) if mask else None,
        )
        options = {"dilation": dilation, "causal": causal, "res_scale": res_scale, "residual": residual}
        return args, options

    return make


def _wn(
    layout: str = "plain",
    layers: int = 3,
    channels: int = 4,
    gate: int = 4,
    skip: int = 4,
    kernel: int = 3,
    cond: str = "local",
    bias: bool = True,
    input_bias: int = 0,
    mask: bool = False,
    causal: bool = False,
    res_scale: float = 1.0,
    skip_scale: float = 1.0,
    last_residual: bool = False,
    cond_channels: int = 6,
    phases: int = 0,
) -> Callable[..., Any]:
    """`phases`: weights of the conditioning for so many, if any; t is then rounded up to a multiple."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        frames = -(-t // phases) if phases else t
        t = frames * (phases or 1)
        per_phase = (phases,) if phases else ()

        def r(*shape: int, scale: float = 0.5) -> Tensor:
            return _random(*shape, dtype=dtype, layout=layout, scale=scale)

        batch, rows = 2, 2 * gate
        outs = [skip + (channels if last_residual or i < layers - 1 else 0) for i in range(layers)]
        cond_t = {
            "none": None,
            "local": lambda: r(batch, cond_channels, frames),
            "global": lambda: r(batch, cond_channels, 1),
            "projected": lambda: r(batch, layers * rows, t),
            "projected global": lambda: r(batch, layers * rows, 1),
        }[cond]
        weighted = cond in ("local", "global")
        args = (
            r(batch, channels, t, scale=1.0),
            [r(rows, channels, kernel) for _ in range(layers)],
            [r(rows) for _ in range(layers)] if bias else [],
            [r(out, gate) for out in outs],
            [r(out) for out in outs] if bias else [],
            None if cond_t is None else cond_t(),
            [r(*per_phase, rows, cond_channels) for _ in range(layers)] if weighted else [],
            # layer 1 has the same bias for all phases
            [r(*(() if i == 1 else per_phase), rows) for i in range(layers)] if weighted and bias else [],
            [r(input_bias, channels) for _ in range(layers)] if input_bias else [],
            _mask(batch, t, dtype) if mask else None,
        )
        options = {
            "dilations": [2**i for i in range(layers)],
            "causal": causal,
            "res_scale": res_scale,
            "skip_scale": skip_scale,
            "last_residual": last_residual,
        }
        return args, options

    return make


def _affine(form: str, reverse: bool, mask: bool = False, layout: str = "plain") -> Callable[..., Any]:
    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, shift, log_scale = (_random(2, 3, t, dtype=dtype, layout=layout, scale=0.7) for _ in range(3))
        options = {"mask": _mask(2, t, dtype) if mask else None, "form": form, "reverse": reverse}
        return (x, shift, None if form == "additive" else log_scale), options

    return make


def _invconv(
    reverse: bool, plu: bool = False, mask: bool = False, layout: str = "plain", channels: int = 4, sign: int = 0
) -> Callable[..., Any]:
    """`sign`: that of the determinant; 0 leaves it to chance."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wide = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        wide = wide + 0.4 / channels * torch.randn(channels, channels, dtype=torch.float64)
        if sign * torch.linalg.det(wide) < 0:
            wide[0] *= -1
        weight = wide.to(dtype)
        options = {"mask": _mask(2, t, dtype) if mask else None, "reverse": reverse}
        x = _random(2, channels, t, dtype=dtype, layout=layout)
        return (x, ops.PLU.from_weight(weight) if plu else weight), options

    return make


def _actnorm(reverse: bool, mask: bool = False, layout: str = "plain") -> Callable[..., Any]:
    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scale = torch.tensor([0.5, -1.5, 2.0], dtype=dtype)
        options = {"mask": _mask(2, t, dtype) if mask else None, "reverse": reverse}
        return (_random(2, 3, t, dtype=dtype, layout=layout), torch.randn(3, dtype=dtype), scale), options

    return make


def _flow_step(
    reverse: bool = False,
    channels: int = 4,
    hidden: int = 5,
    form: str = "exp",
    bias: bool = True,
    weight: bool = True,
    early: int = 0,
    transform_first: bool = False,
    layout: str = "plain",
    log_det: bool = True,
) -> Callable[..., Any]:
    """`early`: how many channels leave or join."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows, leaving = channels // 2 if form == "additive" else channels, 0 if reverse else early
        size = channels - leaving
        args = (
            _random(2, channels, t, dtype=dtype, layout=layout),
            _random(2, hidden, t, dtype=dtype, layout=layout),
            _random(rows, hidden, dtype=dtype, layout=layout, scale=0.5 * hidden**-0.5),
            _random(rows, dtype=dtype, layout=layout, scale=0.3) if bias else None,
            _random(size, size, dtype=dtype, layout=layout, scale=size**-0.5) if weight else None,
            _random(2, early, t, dtype=dtype, layout=layout) if reverse and early else None,
        )
        options = {
            "n_early": leaving,
            "form": form,
            "transform_first": transform_first,
            "reverse": reverse,
            "log_det": log_det,
        }
        return args, options

    return make


CASES = [
    Case("gate", ops.gate, _gate("plain")),
    Case("gate strided", ops.gate, _gate("strided")),
    Case("gate offset", ops.gate, _gate("offset")),
    Case("wn_layer", ops.wn_layer, _wn_layer()),
    Case("wn_layer strided", ops.wn_layer, _wn_layer(layout="strided", kernel=5, dilation=4)),
    Case("wn_layer offset", ops.wn_layer, _wn_layer(layout="offset", dilation=64)),
    Case("wn_layer causal", ops.wn_layer, _wn_layer(causal=True, dilation=2, res_scale=0.5**0.5)),
    Case("wn_layer global", ops.wn_layer, _wn_layer(cond="global", mask=True, kernel=5)),
    Case("wn_layer projected", ops.wn_layer, _wn_layer(cond="projected", input_bias=2)),
    Case("wn_layer bare", ops.wn_layer, _wn_layer(cond="none", bias=False, input_bias=1, kernel=1)),
    Case("wn_layer skip only", ops.wn_layer, _wn_layer(residual=False, mask=True)),
    Case("wn", ops.wn, _wn()),
    Case("wn strided", ops.wn, _wn(layout="strided", kernel=5, channels=5, gate=3, skip=2)),
    Case("wn one layer", ops.wn, _wn(layers=1, layout="offset")),
    Case("wn causal", ops.wn, _wn(causal=True, res_scale=0.5**0.5, skip_scale=0.6, last_residual=True)),
    Case("wn global", ops.wn, _wn(cond="global", mask=True, kernel=5)),
    Case("wn projected", ops.wn, _wn(cond="projected", input_bias=2)),
    Case("wn projected global", ops.wn, _wn(cond="projected global", input_bias=1, mask=True)),
    Case("wn bare", ops.wn, _wn(cond="none", bias=False)),
    Case("wn phases", ops.wn, _wn(phases=2)),
    Case("wn phases strided", ops.wn, _wn(phases=3, layout="strided", kernel=5, mask=True, input_bias=2)),
    Case("wn phases causal", ops.wn, _wn(phases=1, causal=True, bias=False, skip_scale=0.6, last_residual=True)),
    *(
        Case(
            f"affine {form} {'reverse' if reverse else 'forward'}",
            ops.affine_coupling,
            _affine(form, reverse),
        )
        for form in ("exp", "sigmoid", "additive")
        for reverse in (False, True)
    ),
    Case("affine mask", ops.affine_coupling, _affine("exp", False, mask=True, layout="strided")),
    Case("affine mask reverse", ops.affine_coupling, _affine("sigmoid", True, mask=True, layout="offset")),
    Case("affine additive mask", ops.affine_coupling, _affine("additive", False, mask=True)),
    Case("invconv", ops.invconv1x1, _invconv(False)),
    Case("invconv reverse", ops.invconv1x1, _invconv(True, layout="strided")),
    Case("invconv mask", ops.invconv1x1, _invconv(False, mask=True, layout="offset")),
    Case("invconv plu", ops.invconv1x1, _invconv(False, plu=True)),
    Case("invconv plu reverse", ops.invconv1x1, _invconv(True, plu=True, mask=True)),
    Case("invconv 1", ops.invconv1x1, _invconv(False, channels=1, sign=-1)),
    Case("invconv 6", ops.invconv1x1, _invconv(False, channels=6, sign=-1, layout="strided")),
    Case("invconv 6 mask reverse", ops.invconv1x1, _invconv(True, channels=6, mask=True, layout="offset")),
    Case("invconv 12 mask", ops.invconv1x1, _invconv(False, channels=12, mask=True)),
    Case("invconv 32", ops.invconv1x1, _invconv(False, channels=32, sign=-1, layout="offset")),
    Case("invconv 36", ops.invconv1x1, _invconv(False, channels=36, sign=-1, layout="strided")),
    Case("invconv 36 mask reverse", ops.invconv1x1, _invconv(True, channels=36, mask=True, layout="offset")),
    Case("actnorm", ops.actnorm, _actnorm(False)),
    Case("actnorm reverse", ops.actnorm, _actnorm(True, layout="strided")),
    Case("actnorm mask", ops.actnorm, _actnorm(False, mask=True, layout="offset")),
    Case("flow_step", ops.flow_step, _flow_step()),
    Case("flow_step reverse", ops.flow_step, _flow_step(True, layout="strided")),
    Case("flow_step leaving", ops.flow_step, _flow_step(channels=8, hidden=17, early=2, layout="offset")),
    Case("flow_step joining", ops.flow_step, _flow_step(True, channels=6, hidden=17, early=2, layout="offset")),
    Case("flow_step last", ops.flow_step, _flow_step(channels=2, weight=False, bias=False)),
    Case("flow_step first", ops.flow_step, _flow_step(True, channels=2, hidden=3, weight=False, early=3)),
    Case("flow_step sigmoid", ops.flow_step, _flow_step(form="sigmoid", channels=6, early=4, layout="strided")),
    Case("flow_step sigmoid reverse", ops.flow_step, _flow_step(True, form="sigmoid", transform_first=True)),
    Case("flow_step additive", ops.flow_step, _flow_step(form="additive", channels=6, transform_first=True, early=3)),
    Case("flow_step additive reverse", ops.flow_step, _flow_step(True, form="additive", bias=False, early=1)),
    Case("flow_step wide", ops.flow_step, _flow_step(channels=32, hidden=33, transform_first=True, early=2)),
    Case("flow_step wide reverse", ops.flow_step, _flow_step(True, channels=18, form="sigmoid", early=5)),
    Case("flow_step without log_det", ops.flow_step, _flow_step(True, log_det=False)),
]

# Sizes that matrix units take, multiples of 8 channels: below and across the widths of tiles.
_WIDE = {"channels": 16, "gate": 24, "skip": 8, "cond_channels": 16}
_WIDER = {"channels": 72, "gate": 136, "skip": 40, "cond_channels": 80}

WIDE = [
    Case("wn_layer wide", ops.wn_layer, _wn_layer(**_WIDE, dilation=2)),
    Case("wn_layer wide strided", ops.wn_layer, _wn_layer(**_WIDE, layout="strided", kernel=5, mask=True)),
    Case("wn_layer wide causal", ops.wn_layer, _wn_layer(**_WIDE, causal=True, dilation=16, cond="none", bias=False)),
    Case("wn_layer wide projected", ops.wn_layer, _wn_layer(**_WIDE, cond="projected", res_scale=0.5**0.5)),
    Case("wn_layer wide skip only", ops.wn_layer, _wn_layer(**_WIDE, residual=False, cond="global", input_bias=2)),
    Case("wn_layer wider", ops.wn_layer, _wn_layer(**_WIDER, dilation=3)),
    Case("wn wide", ops.wn, _wn(**_WIDE, layers=4, last_residual=True, skip_scale=0.6)),
    Case("wn wide projected", ops.wn, _wn(**_WIDE, cond="projected", input_bias=2, mask=True, layout="strided")),
    Case("wn wide global", ops.wn, _wn(**_WIDE, cond="projected global", input_bias=1, mask=True, causal=True)),
    Case("wn wider", ops.wn, _wn(**_WIDER, layers=2, kernel=5)),
    Case("wn wide phases", ops.wn, _wn(**_WIDE, phases=4, kernel=5, layers=4, input_bias=2, mask=True)),
]


def convert(values: Any, dtype: torch.dtype) -> Any:
    """The same arguments in another dtype, the strides kept."""
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, ops.PLU):
        return ops.PLU(*(convert(v, dtype) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(convert(v, dtype) for v in values)
    if isinstance(values, dict):
        return {k: convert(v, dtype) for k, v in values.items()}
    return values
