"""The compiled CPU operations, called directly, against the formulas written down once more in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastflow
from fastflow import _native
from fastflow.ops import registry

LIBRARY = Path(_native.__file__).with_name("_cpu.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="installed without compiled kernels")

TIMES = [0, 1, 2, 7, 8, 9, 127, 128, 129, 130]
DTYPES = [torch.float32, torch.float64]
SMALL_DTYPES = [*DTYPES, torch.bfloat16]  # of the operations beside the gated stack

ops = torch.ops.fastflow_cpu

# What std::invalid_argument becomes in Python. pybind11 made it a ValueError until PyTorch's own translation took over
# for torch.ops (pytorch/pytorch#193451): that knows no such type and makes it a RuntimeError, with the same message.
# 2.13 does the one, 2.15 the other. Callers of fastflow.ops see ValueError always: the checks of api.py come first.
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
BAD_ARGUMENT = (ValueError,) if TORCH < (2, 14) else (RuntimeError,) if TORCH == (2, 15) else (ValueError, RuntimeError)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors are full of NaN, so an output element that is never written shows."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare with a float64 result, within the project's bounds for operations; bfloat16 is rounded once."""
    bounds = {torch.float64: (1e-10, 1e-11), torch.float32: (1e-4, 1e-5), torch.bfloat16: (2**-8, 1e-5)}
    rtol, atol = bounds[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)


def rand(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same [B, C, T] values in different memory: dense, misaligned, sliced, strided, transposed."""
    b, c, t = x.shape
    misaligned = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(b, c, t).copy_(x)
    wider = torch.empty(b, c + 2, t + 3, dtype=x.dtype)
    channel_slice = torch.empty(b, 2 * c, t, dtype=x.dtype)[:, :c].copy_(x)
    every_second = torch.empty(b, c, 2 * t, dtype=x.dtype)[:, :, ::2].copy_(x)
    return {
        "dense": x.contiguous(),
        "misaligned": misaligned,
        "channel slice": channel_slice,
        "time slice": wider[:, 1 : c + 1, 2 : t + 2].copy_(x),
        "time stride 2": every_second,
        "channels last": x.transpose(1, 2).contiguous().transpose(1, 2),
    }


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed and summed in, and what log-determinants are returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gate_formula(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.tanh(x[:, :half]) * torch.sigmoid(x[:, half:])


def layer_formula(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """A WN layer, tap by tap, in float64."""
    h, conv_weight, res_skip_weight = h.double(), conv_weight.double(), res_skip_weight.double()
    b, c, t = h.shape
    taps = conv_weight.shape[2]
    x = h if input_bias is None else h + input_bias.double()[:, :, None]
    left = (taps - 1) * dilation // (1 if causal else 2)
    u = torch.zeros(b, conv_weight.shape[0], t, dtype=torch.float64)
    for tap in range(taps):
        for out in range(t):
            source = out + tap * dilation - left
            if 0 <= source < t:
                u[:, :, out] += x[:, :, source] @ conv_weight[:, :, tap].T
    if conv_bias is not None:
        u = u + conv_bias.double()[:, None]
    if cond is not None:
        projected = cond.double() if cond_weight is None else cond_weight.double() @ cond.double()
        u = u + projected
    if cond_bias is not None:
        u = u + cond_bias.double()[:, None]
    r = res_skip_weight @ gate_formula(u)
    if res_skip_bias is not None:
        r = r + res_skip_bias.double()[:, None]
    rows = c if residual else 0
    h_out = (h + r[:, :rows]) * res_scale if residual else h[:, :0]
    return h_out if mask is None else h_out * mask.double(), r[:, rows:]


def layer_arguments(
    *,
    dtype: torch.dtype,
    t: int,
    b: int = 2,
    c: int = 5,
    g: int = 7,
    s: int = 3,
    taps: int = 3,
    cond: str = "local",
    dilation: int = 2,
    causal: bool = False,
    biases: bool = True,
    input_bias: int = 0,
    mask: bool = False,
    res_scale: float = 1.0,
    residual: bool = True,
) -> list[object]:
    """Arguments of wn_layer in the schema's order. `cond`: local, global, projected (global) or none."""
    r = c if residual else 0
    cond_channels = 2 * g if "projected" in cond else 4
    cond_time = 1 if "global" in cond else t
    has_cond = cond != "none"
    has_weight = has_cond and "projected" not in cond
    return [
        rand(b, c, t, dtype=dtype),
        rand(2 * g, c, taps, dtype=dtype) / (c * taps) ** 0.5,
        rand(2 * g, dtype=dtype) if biases else None,
        rand(r + s, g, dtype=dtype) / g**0.5,
        rand(r + s, dtype=dtype) if biases else None,
        rand(b, cond_channels, cond_time, dtype=dtype) if has_cond else None,
        rand(2 * g, cond_channels, dtype=dtype) / 2 if has_weight else None,
        rand(2 * g, dtype=dtype) if biases and has_cond else None,
        rand(input_bias, c, dtype=dtype) if input_bias else None,
        (torch.rand(b, 1, t) > 0.3).to(dtype) if mask else None,
        dilation,
        causal,
        res_scale,
        residual,
    ]


def check_layer(arguments: list[object]) -> None:
    h_out, skip = ops.wn_layer(*arguments)
    expected_h, expected_skip = layer_formula(*arguments)  # type: ignore[arg-type]
    close(h_out, expected_h)
    close(skip, expected_skip)


def test_library_implements_every_operation() -> None:
    assert _native.status()["cpu"] is None
    for op in registry.SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastflow_cpu::{op}", "CPU"), op


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("t", TIMES)
def test_gate(t: int, dtype: torch.dtype) -> None:
    for name, x in layouts(4 * rand(2, 6, t, dtype=dtype)).items():
        y = ops.gate(x)
        assert y.shape == (2, 3, t) and y.dtype == dtype, name
        close(y, gate_formula(x.double()))


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (1, 2, 0), (1, 2, 100_003)])
def test_gate_shapes(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    close(ops.gate(x), gate_formula(x.double()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_is_accurate_everywhere(dtype: torch.dtype) -> None:
    """Relative to the result itself, from tiny to saturated; infinities are exact and NaN comes through."""
    magnitudes = torch.logspace(-30, 1.9, 4001, dtype=torch.float64)
    values = torch.cat([-magnitudes.flip(0), magnitudes]).to(dtype)
    for tanh_in, sigmoid_in in (
        (values, torch.full_like(values, 0.7)),
        (torch.full_like(values, 0.7), values),
    ):
        x = torch.stack([tanh_in, sigmoid_in])[None]
        expected = gate_formula(x.double())
        relative = ((ops.gate(x).double() - expected) / expected).abs()
        # Below e^-87 the result leaves float32's normal range.
        assert relative.max() < 8 * torch.finfo(dtype).eps
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[inf, -inf, 1.0, 1.0, 1e30, -1e30, nan, 1.0], [inf, inf, inf, -inf, 1e30, 1e30, 1.0, nan]])
    y = ops.gate(x.to(dtype)[None])[0, 0].double()
    torch.testing.assert_close(
        y[:6],
        torch.tensor([1, -1, torch.tanh(torch.tensor(1.0)), 0, 1, -1], dtype=torch.float64),
        rtol=0,
        atol=1e-7,
    )
    assert y[6:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", TIMES)
def test_wn_layer_times(t: int, causal: bool, dtype: torch.dtype) -> None:
    check_layer(layer_arguments(dtype=dtype, t=t, causal=causal, mask=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cond", ["local", "global", "projected", "projected global", "none"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("t", [1, 33])
def test_wn_layer_conditioning(t: int, biases: bool, cond: str, dtype: torch.dtype) -> None:
    check_layer(layer_arguments(dtype=dtype, t=t, cond=cond, biases=biases))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 4, 16, 64])
def test_wn_layer_dilations(dilation: int, taps: int, causal: bool) -> None:
    """Up to dilations beyond the whole length, 19."""
    check_layer(layer_arguments(dtype=torch.float32, t=19, dilation=dilation, taps=taps, causal=causal))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("input_bias", [0, 1, 2])
def test_wn_layer_extras(input_bias: int, mask: bool, residual: bool, dtype: torch.dtype) -> None:
    check_layer(
        layer_arguments(dtype=dtype, t=21, input_bias=input_bias, mask=mask, residual=residual, res_scale=0.5**0.5)
    )


@pytest.mark.parametrize(
    ("c", "g", "s"), [(1, 1, 1), (4, 6, 0), (12, 12, 12), (13, 25, 1), (64, 64, 64), (192, 96, 24)]
)
def test_wn_layer_channels(c: int, g: int, s: int) -> None:
    """Panels of weight rows that come out even, and that do not."""
    check_layer(layer_arguments(dtype=torch.float32, t=40, c=c, g=g, s=s))


def test_wn_layer_waveglow_size() -> None:
    """256 channels, 640 of conditioning: several tiles of time, and sums as long as they get."""
    torch.manual_seed(1)
    h, cond = torch.randn(1, 256, 300), torch.randn(1, 640, 300)
    conv_weight, cond_weight = torch.randn(512, 256, 3) / 768**0.5, torch.randn(512, 640) / 640**0.5
    res_skip_weight, bias = torch.randn(512, 256) / 16, torch.randn(512)
    check_layer(
        [
            h,
            conv_weight,
            bias,
            res_skip_weight,
            bias,
            cond,
            cond_weight,
            bias,
            None,
            None,
            8,
            False,
            1.0,
            True,
        ]
    )


@pytest.mark.parametrize("t", [1, 9, 40])
def test_wn_layer_layouts(t: int) -> None:
    arguments = layer_arguments(dtype=torch.float32, t=t, input_bias=2, mask=True)
    expected = layer_formula(*arguments)  # type: ignore[arg-type]
    for index in (0, 5, 9):  # h, cond, mask
        for x in layouts(arguments[index]).values():  # type: ignore[arg-type]
            for actual, wanted in zip(
                ops.wn_layer(*[x if i == index else a for i, a in enumerate(arguments)]),
                expected,
                strict=True,
            ):
                close(actual, wanted)
    strided = [a.repeat_interleave(2, dim=-1)[..., ::2] if i in (1, 3, 6, 8) else a for i, a in enumerate(arguments)]  # type: ignore[attr-defined]
    for actual, wanted in zip(ops.wn_layer(*strided), expected, strict=True):
        close(actual, wanted)


def test_wn_layer_empty_batch() -> None:
    check_layer(layer_arguments(dtype=torch.float32, t=9, b=0))


def test_wn_layer_keeps_nan_local() -> None:
    """A NaN reaches the outputs whose window it is in, and no others."""
    arguments = layer_arguments(dtype=torch.float32, t=200, taps=3, dilation=4)
    arguments[0][0, 2, 100] = float("nan")  # type: ignore[index]
    h_out, skip = ops.wn_layer(*arguments)
    hit = torch.zeros(200, dtype=torch.bool)
    hit[[96, 100, 104]] = True
    assert torch.equal(skip[0].isnan().all(0), hit) and torch.equal(skip[0].isnan().any(0), hit)
    assert not skip[1].isnan().any() and not h_out[1].isnan().any()


@pytest.mark.parametrize("dilation", [1, 2, 64])
def test_wn_layer_same_bits_on_any_number_of_threads(dilation: int) -> None:
    arguments = layer_arguments(dtype=torch.float32, t=1500, c=16, g=16, s=16, dilation=dilation)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([*ops.wn_layer(*arguments), *ops.wn_layer_keeping_u(*arguments)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 8, 16, 24, 32, 64, 96])
def test_wn_layer_minimal_filtering(dilation: int, causal: bool, dtype: torch.dtype) -> None:
    """Lengths around whole and broken pairs of slices, for dilations that pair steps and dilations that do not."""
    for t in (15, 17, 31, 33, 63, 64, 65, 127, 191, 200, 257):
        arguments = layer_arguments(dtype=dtype, t=t, b=1, dilation=dilation, causal=causal, input_bias=1)
        check_layer(arguments)
        arguments[0] = arguments[0][..., 1:]  # type: ignore[index]
        arguments[5] = arguments[5][..., 1:]  # type: ignore[index]
        check_layer(arguments)


def as_bfloat16(arguments: list[object]) -> list[object]:
    return [a.bfloat16() if isinstance(a, Tensor) else a for a in arguments]


def check_bfloat16_layer(arguments: list[object]) -> None:
    """Against float64, the error is at most twice that of plain PyTorch in bfloat16."""
    arguments = as_bfloat16(arguments)
    with fastflow.use_backend("reference"):
        plain = torch.ops.fastflow.wn_layer(*arguments)
    expected = layer_formula(*arguments)  # type: ignore[arg-type]
    for g, p, e in zip(ops.wn_layer(*arguments), plain, expected, strict=True):
        assert g.dtype == torch.bfloat16
        assert not g.numel() or (g - e).square().mean() <= 4 * (p - e).square().mean() + 1e-10


@pytest.mark.parametrize("cond", ["local", "global", "projected", "none"])
@pytest.mark.parametrize("t", [0, 33, 130])
def test_wn_layer_in_bfloat16(t: int, cond: str) -> None:
    for dilation in (1, 2, 5, 32):
        check_bfloat16_layer(layer_arguments(dtype=torch.float32, t=t, cond=cond, dilation=dilation, mask=True))


def test_bfloat16_keeps_infinities_and_nan() -> None:
    inf, nan = float("inf"), float("nan")
    h = torch.tensor([1.0, inf, -inf, nan, 3e38]).bfloat16().view(1, 1, 5)
    one = torch.ones(2, 1, 1).bfloat16()
    h_out, _ = ops.wn_layer(h, one, None, one[:, :, 0], None, *[None] * 5, 1, False, 1.0, True)
    expected = torch.ops.fastflow.wn_layer(h, one, None, one[:, :, 0], None, *[None] * 5, 1, False, 1.0, True)[0]
    torch.testing.assert_close(h_out, expected, equal_nan=True)


def check_gate_backward(arguments: list[object]) -> None:
    """What the library keeps of a layer, and the gradients it makes of that."""
    res_skip_weight = arguments[3]
    h_out, u = ops.wn_layer_keeping_u(*arguments)
    close(h_out, layer_formula(*arguments)[0])  # type: ignore[arg-type]
    expected_u = u.double().requires_grad_()
    grad_r = torch.randn(u.shape[0], res_skip_weight.shape[0], u.shape[2], dtype=u.dtype)  # type: ignore[attr-defined]
    expected_a = gate_formula(expected_u)
    grad_u, a = ops.wn_gate_backward(grad_r, u, res_skip_weight)
    close(a, expected_a)
    (expected,) = torch.autograd.grad(expected_a, expected_u, res_skip_weight.double().T @ grad_r.double())  # type: ignore[attr-defined]
    close(grad_u, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", TIMES)
def test_wn_gate_backward(t: int, dtype: torch.dtype) -> None:
    for residual in (False, True):
        check_gate_backward(layer_arguments(dtype=dtype, t=t, residual=residual, mask=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last_residual", [False, True])
@pytest.mark.parametrize("cond", ["local", "global", "projected", "projected global", "none"])
@pytest.mark.parametrize("t", [0, 1, 70])
def test_wn(t: int, cond: str, last_residual: bool, dtype: torch.dtype) -> None:
    """The whole block is its layers one after the other."""
    dilations, scale, skip_scale = [1, 2, 4], 0.5**0.5, 3**-0.5
    layers = []
    for i, dilation in enumerate(dilations):
        residual = i < 2 or last_residual
        layers.append(
            layer_arguments(
                dtype=dtype,
                t=t,
                cond=cond,
                dilation=dilation,
                input_bias=2,
                residual=residual,
                res_scale=scale,
            )
        )
    h, mask = layers[0][0], (torch.rand(2, 1, t) > 0.3).to(dtype)
    lists = [[layer[i] for layer in layers if layer[i] is not None] for i in range(9)]
    conds = lists[5]
    block_cond = None if not conds else torch.cat(conds, dim=1) if "projected" in cond else conds[0]  # type: ignore[arg-type]

    state, total = h, torch.zeros(2, 3, t, dtype=torch.float64)
    for layer in layers:
        layer[0], layer[9] = state, mask
        if block_cond is not None and "projected" not in cond:
            layer[5] = block_cond
        state, skip = layer_formula(*layer)  # type: ignore[arg-type]
        total = total + skip

    options = (dilations, False, scale, skip_scale, last_residual)
    actual = ops.wn(h, *lists[1:5], block_cond, *lists[6:9], mask, *options)
    close(actual, total * skip_scale * mask.double())


def test_wn_minimal() -> None:
    """One layer, every list that may be empty is empty."""
    arguments = layer_arguments(dtype=torch.float32, t=11, cond="none", biases=False, residual=False)
    h, conv_weight, res_skip_weight = arguments[0], arguments[1], arguments[3]
    actual = ops.wn(h, [conv_weight], [], [res_skip_weight], [], None, [], [], [], None, [2], False, 1.0, 1.0, False)
    close(actual, layer_formula(*arguments)[1])  # type: ignore[arg-type]


def phased_arguments(
    phases: int,
    frames: int,
    dilations: list[int],
    *,
    dtype: torch.dtype,
    taps: int = 3,
    causal: bool = False,
    channels: int = 9,
    mask: bool = False,
    input_bias: int = 0,
    last_residual: bool = False,
) -> list[object]:
    """Arguments of `wn` with conditioning weights for each phase; every second layer has one bias for all phases."""
    t = phases * frames
    layers = [
        layer_arguments(
            dtype=dtype,
            t=t,
            c=channels,
            taps=taps,
            residual=last_residual or i < len(dilations) - 1,
            input_bias=input_bias,
        )
        for i in range(len(dilations))
    ]
    lists = [[layer[i] for layer in layers if layer[i] is not None] for i in range(9)]
    cond = rand(2, 5, frames, dtype=dtype)
    weights = [rand(phases, 14, 5, dtype=dtype) / 2 for _ in dilations]
    biases = [rand(*((phases, 14) if i % 2 else (14,)), dtype=dtype) for i in range(len(dilations))]
    gaps = (torch.rand(2, 1, t) > 0.3).to(dtype) if mask else None
    options = (dilations, causal, 0.5**0.5, 0.6, last_residual)
    return [layers[0][0], *lists[1:5], cond, weights, biases, lists[8], gaps, *options]


def phased_formula(arguments: list[object], dtype: torch.dtype) -> Tensor:
    """The reference of the block in `dtype`, after the projection of the conditioning step by step."""

    def wide_as(x: object) -> object:
        return x.to(dtype) if isinstance(x, Tensor) else [wide_as(y) for y in x] if isinstance(x, list) else x

    dilations, options = arguments[10], arguments[11:]
    h, *lists, cond, weights, biases, input_biases, mask = (wide_as(a) for a in arguments[:10])
    steps = torch.arange(h.shape[2])  # type: ignore[attr-defined]
    phases = weights[0].shape[0]  # type: ignore[index]
    projected = [
        torch.einsum("toc,bct->bot", weight[steps % phases], cond[:, :, steps // phases])  # type: ignore[index]
        + (bias[steps % phases].T if bias.dim() == 2 else bias[:, None])
        for weight, bias in zip(weights, biases, strict=True)  # type: ignore[call-overload]
    ]
    with fastflow.use_backend("reference"):
        out: Tensor = torch.ops.fastflow.wn(
            h, *lists, torch.cat(projected, 1), [], [], input_biases, mask, dilations, *options
        )
    return out


def check_phases(*sizes: object, **options: object) -> None:
    arguments = phased_arguments(*sizes, **options)  # type: ignore[arg-type]
    close(ops.wn(*arguments), phased_formula(arguments, torch.float64))


def phased_dilations(phases: int) -> list[int]:
    """Below, equal to and above the phases; dividing them and not: pairs of phases, pairs of frames, and neither."""
    return [1, 2, 3, 16, phases, 2 * phases, 16 * phases, 24 * phases, phases + 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frames", [0, 1, 2, 7, 17, 40])
@pytest.mark.parametrize("phases", [1, 2, 3, 32])
def test_wn_phases(phases: int, frames: int, dtype: torch.dtype) -> None:
    dilations = phased_dilations(phases)
    check_phases(phases, frames, dilations, dtype=dtype, input_bias=1)
    check_phases(phases, frames, dilations, dtype=dtype, causal=True, last_residual=True, mask=True)
    for taps in (1, 5):
        check_phases(phases, frames, dilations[:5], dtype=dtype, taps=taps, causal=frames == 7, input_bias=2)


def check_bfloat16_phases(*sizes: object, **options: object) -> None:
    """Against float64, the error is at most twice that of plain PyTorch in bfloat16."""
    arguments = phased_arguments(*sizes, dtype=torch.bfloat16, **options)  # type: ignore[arg-type, misc]
    got, plain = ops.wn(*arguments), phased_formula(arguments, torch.bfloat16)
    expected = phased_formula(arguments, torch.float64)
    assert got.dtype == torch.bfloat16
    assert (got - expected).square().mean() <= 4 * (plain - expected).square().mean()


@pytest.mark.parametrize(("phases", "frames"), [(1, 65), (2, 33), (3, 17), (32, 7), (32, 40)])
def test_wn_phases_in_bfloat16(phases: int, frames: int) -> None:
    check_bfloat16_phases(phases, frames, phased_dilations(phases), mask=True)
    assert ops.wn(*phased_arguments(phases, 0, [1], dtype=torch.bfloat16)).shape == (2, 3, 0)


def test_wn_phases_layouts_and_mixed_dtypes() -> None:
    arguments = phased_arguments(4, 20, [1, 4, 32], dtype=torch.float32)
    expected = ops.wn(*arguments)
    h, cond, weights = arguments[0], arguments[5], arguments[6]
    for h_relaid, cond_relaid in zip(layouts(h).values(), layouts(cond).values(), strict=True):  # type: ignore[arg-type]
        arguments[0], arguments[5] = h_relaid, cond_relaid
        assert torch.equal(ops.wn(*arguments), expected)
    arguments[6] = [w.transpose(1, 2).contiguous().transpose(1, 2) for w in weights]  # type: ignore[attr-defined]
    assert torch.equal(ops.wn(*arguments), expected)
    arguments[6] = [w.bfloat16() for w in weights]  # type: ignore[attr-defined]
    with pytest.raises(BAD_ARGUMENT, match="`cond_weight` must be float32 like the first argument; got bfloat16"):
        ops.wn(*arguments)


def test_wn_phases_same_bits_on_any_number_of_threads() -> None:
    cases = [phased_arguments(8, 100, [1, 3, 8, 32], dtype=d, channels=16) for d in (torch.float32, torch.bfloat16)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append([ops.wn(*arguments) for arguments in cases])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dilation", [1, 4, 8])
def test_wn_phases_keep_nan_local(dilation: int) -> None:
    """A NaN reaches the outputs whose window it is in, and the steps of its frame, and no others."""
    arguments = phased_arguments(4, 60, [dilation], dtype=torch.float32)
    arguments[0][0, 2, 101] = float("nan")  # type: ignore[index]
    arguments[5][1, 2, 30] = float("nan")  # type: ignore[index]
    hit = torch.zeros(2, 240, dtype=torch.bool)
    hit[0, [101 - dilation, 101, 101 + dilation]] = True
    hit[1, 120:124] = True
    out = ops.wn(*arguments)
    assert torch.equal(out.isnan().all(1), hit) and torch.equal(out.isnan().any(1), hit)


def coupling_formula(
    x: Tensor, shift: Tensor, log_scale: Tensor | None, mask: Tensor | None, form: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    x, shift = x.double(), shift.double()
    if form == "additive":
        log = torch.zeros_like(x)
        y = x - shift if reverse else x + shift
    else:
        assert log_scale is not None
        s = log_scale.double()
        log = s if form == "exp" else torch.nn.functional.logsigmoid(s + 2)
        if form == "exp":
            y = (x - shift) * torch.exp(-s) if reverse else torch.exp(s) * x + shift
        else:
            y = x / torch.sigmoid(s + 2) - shift if reverse else (x + shift) * torch.sigmoid(s + 2)
    weight = torch.ones_like(x) if mask is None else mask.double().expand_as(x)
    return y * weight, (log * weight).sum(dim=(1, 2)) * (-1 if reverse else 1)


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["exp", "sigmoid", "additive"])
def test_affine_coupling(form: str, masked: bool, reverse: bool, dtype: torch.dtype) -> None:
    for t in TIMES:
        mask = (torch.rand(2, 1, t) > 0.3).to(dtype) if masked else None
        x, shift = rand(2, 3, t, dtype=dtype), rand(2, 3, t, dtype=dtype)
        log_scale = rand(2, 3, t, dtype=dtype) if form != "additive" else None
        expected_y, expected_log_det = coupling_formula(x, shift, log_scale, mask, form, reverse)
        for name in layouts(x):
            y, log_det = ops.affine_coupling(
                layouts(x)[name],
                layouts(shift)[name],
                None if log_scale is None else layouts(log_scale)[name],
                None if mask is None else layouts(mask)[name],
                form,
                reverse,
            )
            close(y, expected_y)
            assert log_det.dtype == wide(dtype)
            close(log_det, expected_log_det)


def test_affine_coupling_sums_in_double() -> None:
    """A hundred thousand terms added in float32, one by one, would be off by parts in a million."""
    log_scale = torch.full((1, 1, 100_000), 0.1)
    _, log_det = ops.affine_coupling(log_scale, log_scale, log_scale, None, "exp", False)
    torch.testing.assert_close(log_det.double(), log_scale.double().sum(dim=(1, 2)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("channels", [1, 4, 8, 33])
def test_invconv1x1(channels: int, dtype: torch.dtype) -> None:
    weight = rand(channels, channels, dtype=dtype)
    log_abs_det = torch.linalg.slogdet(weight.double()).logabsdet
    for t in [*TIMES, 511, 512, 513, 1500]:
        x, mask = rand(2, channels, t, dtype=dtype), (torch.rand(2, 1, t) > 0.3).to(dtype)
        expected = weight.double() @ x.double()
        for strided in layouts(x).values():
            y, log_det = ops.invconv1x1(strided, weight, None, True)
            close(y, expected)
            close(log_det, (t * log_abs_det).expand(2))
        for strided in layouts(mask).values():
            y, log_det = ops.invconv1x1(x, weight.T.contiguous().T, strided, True)
            close(y, expected * mask.double())
            close(log_det, mask.double().sum((1, 2)) * log_abs_det)
        y, log_det = ops.invconv1x1(x, weight, mask, False)
        close(y, expected * mask.double())
        assert log_det.shape == (0,)


def test_invconv1x1_without_channels() -> None:
    y, log_det = ops.invconv1x1(torch.zeros(2, 0, 5), torch.zeros(0, 0), None, True)
    assert y.shape == (2, 0, 5)
    close(log_det, torch.zeros(2, dtype=torch.float64))


def test_invconv1x1_log_det_of_awkward_weights() -> None:
    x = torch.zeros(1, 3, 2)
    for weight, expected in (
        (torch.tensor([[0.0, 2, 0], [0, 0, -3], [5, 0, 0]]), 2 * math.log(30)),  # every pivot is in another row
        (torch.tensor([[1e-20, 1, 0], [1, 1, 0], [0, 0, 1.0]]), 0.0),  # without pivoting, nothing of it is right
        (torch.ones(3, 3), -math.inf),
    ):
        _, log_det = ops.invconv1x1(x, weight, None, True)
        close(log_det, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_actnorm(reverse: bool, dtype: torch.dtype) -> None:
    loc = rand(3, dtype=dtype)
    scale = (rand(3, dtype=dtype).abs() + 0.5) * torch.tensor([1, -1, 1])
    per_step = scale.double().abs().log().sum() * (-1 if reverse else 1)
    for t in TIMES:
        x, mask = rand(2, 3, t, dtype=dtype), (torch.rand(2, 1, t) > 0.3).to(dtype)
        wide_loc, wide_scale = loc.double()[:, None], scale.double()[:, None]
        expected = x.double() / wide_scale - wide_loc if reverse else wide_scale * (x.double() + wide_loc)
        for strided in layouts(x).values():
            y, log_det = ops.actnorm(strided, loc, scale, None, reverse)
            close(y, expected)
            close(log_det, (t * per_step).expand(2))
        y, log_det = ops.actnorm(x, loc, scale, mask, reverse)
        close(y, expected * mask.double())
        close(log_det, mask.double().sum((1, 2)) * per_step)


def flow_step_formula(
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
    half = x.shape[1] // 2
    out = end_weight.double() @ hidden.double()
    if end_bias is not None:
        out = out + end_bias.double()[:, None]
    first, second = x[:, :half].double(), x[:, half:].double()
    moved, kept = (first, second) if transform_first else (second, first)
    moved, total = coupling_formula(moved, out[:, :half], out[:, half:], None, form, reverse)
    z = torch.cat((moved, kept) if transform_first else (kept, moved), 1)
    if weight is not None:
        z = torch.cat((z[:, :n_early], weight.double() @ z[:, n_early:]), 1)
    if early is not None:
        z = torch.cat((early.double(), z), 1)
    return z, total if log_det else total[:0]


def flow_step_arguments(
    *,
    dtype: torch.dtype,
    t: int,
    b: int = 2,
    c: int = 6,
    s: int = 17,
    form: str = "exp",
    reverse: bool = False,
    early: int = 2,
    weight: bool = True,
    bias: bool = True,
    transform_first: bool = False,
    log_det: bool = True,
) -> list[object]:
    """Arguments of flow_step in the schema's order. `early`: how many channels leave or join."""
    rows, leaving = c // 2 if form == "additive" else c, 0 if reverse or not weight else early
    return [
        rand(b, c, t, dtype=dtype),
        rand(b, s, t, dtype=dtype),
        rand(rows, s, dtype=dtype) / (2 * s**0.5),
        rand(rows, dtype=dtype) / 4 if bias else None,
        rand(c - leaving, c - leaving, dtype=dtype) / c**0.5 if weight else None,
        rand(b, early, t, dtype=dtype) if reverse and early else None,
        leaving,
        form,
        transform_first,
        reverse,
        log_det,
    ]


def check_flow_step(arguments: list[object]) -> None:
    y, log_det = ops.flow_step(*arguments)
    expected_y, expected_log_det = flow_step_formula(*arguments)  # type: ignore[arg-type]
    assert y.dtype == arguments[0].dtype and log_det.dtype == wide(y.dtype)  # type: ignore[attr-defined]
    close(y, expected_y)
    close(log_det, expected_log_det)


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["exp", "sigmoid", "additive"])
def test_flow_step(form: str, reverse: bool, dtype: torch.dtype) -> None:
    for t in [*TIMES, 31, 32, 33, 640]:
        for first in (False, True):
            check_flow_step(flow_step_arguments(dtype=dtype, t=t, form=form, reverse=reverse, transform_first=first))


@pytest.mark.parametrize("channels", [2, 4, 8, 10, 18, 32, 66])
def test_flow_step_channels(channels: int) -> None:
    """Blocks of rows that come out even, and that do not; without bias, weight, early outputs and log-determinant."""
    for s in (1, 3, 256):
        check_flow_step(flow_step_arguments(dtype=torch.float32, t=50, c=channels, s=s, early=0))
        arguments = flow_step_arguments(
            dtype=torch.float32, t=50, c=channels, s=s, reverse=True, weight=False, bias=False, log_det=False
        )
        check_flow_step(arguments)


def test_flow_step_layouts() -> None:
    arguments = flow_step_arguments(dtype=torch.float32, t=40, reverse=True)
    expected, _ = flow_step_formula(*arguments)  # type: ignore[arg-type]
    for index in (0, 1, 5):  # x, hidden, early
        for x in layouts(arguments[index]).values():  # type: ignore[arg-type]
            y, _ = ops.flow_step(*[x if i == index else a for i, a in enumerate(arguments)])
            close(y, expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_flow_step_takes_a_half_precision_network_in_a_float32_flow(half: torch.dtype) -> None:
    arguments = flow_step_arguments(dtype=torch.float32, t=40)
    arguments[1:4] = [a.to(half) for a in arguments[1:4]]  # type: ignore[attr-defined]
    check_flow_step(arguments)


def test_the_invertible_product_takes_a_float32_weight_beside_bfloat16() -> None:
    x, weight = rand(2, 5, 40, dtype=torch.bfloat16), rand(5, 5, dtype=torch.float32)
    y, log_det = ops.invconv1x1(x, weight, None, True)
    close(y, weight.double() @ x.double())
    close(log_det, 40 * torch.linalg.slogdet(weight.double()).logabsdet.expand(2))


@pytest.mark.parametrize("dtype", SMALL_DTYPES)
def test_small_operations_give_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x, other, log_scale = (rand(2, 8, 9000, dtype=dtype) for _ in range(3))
    step = flow_step_arguments(dtype=dtype, t=3001, s=64)
    calls = [
        lambda: [ops.gate(x)],
        lambda: ops.affine_coupling(x, other, log_scale, None, "exp", False),
        lambda: ops.invconv1x1(x, torch.eye(8, dtype=dtype) + 0.1, None, True),
        lambda: ops.actnorm(x, x[0, :, 0], other[0, :, 0], None, False),
        lambda: ops.flow_step(*step),
    ]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append([t for call in calls for t in call()])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def backward_calls(dtype: torch.dtype, t: int) -> dict[str, list[object]]:
    """Arguments of each backward that the library has: every form and direction, with and without a mask."""
    x, shift, log_scale, grad = (rand(2, 4, t, dtype=dtype) for _ in range(4))
    mask, loc, scale = (torch.rand(2, 1, t) > 0.3).to(dtype), rand(4, dtype=dtype), rand(4, dtype=dtype) + 3
    calls: dict[str, list[object]] = {"gate_backward": [grad[:, :2], x]}
    from_sum = rand(2, dtype=dtype)
    for m in (None, mask):
        for reverse in (False, True):
            calls[f"actnorm_backward {m is None} {reverse}"] = [grad, from_sum, x, loc, scale, m, reverse]
            for form in ("exp", "sigmoid", "additive"):
                s = None if form == "additive" else log_scale
                name = f"affine_coupling_backward {form} {m is None} {reverse}"
                calls[name] = [grad, from_sum, x, shift, s, m, form, reverse]
    return calls


def check_backward(name: str, arguments: list[object]) -> None:
    op = name.split()[0]
    wide_arguments = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    expected = registry._implementations["reference"][op](*wide_arguments)
    got = getattr(ops, op)(*arguments)
    if isinstance(got, Tensor):
        got, expected = [got], [expected]
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        close(g, e)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backwards_against_the_reference_formulas(dtype: torch.dtype) -> None:
    for t in [*TIMES, 511, 512, 513]:
        for name, arguments in backward_calls(dtype, t).items():
            check_backward(name, arguments)


def test_backward_layouts() -> None:
    for name, arguments in backward_calls(torch.float32, 40).items():
        for index, argument in enumerate(arguments):
            if isinstance(argument, Tensor) and argument.dim() == 3:
                for x in layouts(argument).values():
                    check_backward(name, [x if i == index else a for i, a in enumerate(arguments)])


def test_coupling_is_accurate_everywhere() -> None:
    """Scales from nothing to infinity, relative to the result itself; infinities and NaN as PyTorch has them."""
    s = torch.cat([torch.linspace(-104, 88.5, 40001), torch.tensor([-200.0, 200.0, math.inf, -math.inf, math.nan])])
    one, zero = torch.ones(1, 1, len(s)), torch.zeros(1, 1, len(s))
    y, _ = ops.affine_coupling(one, zero, s[None, None], None, "exp", False)
    expected = torch.exp(s.double())
    normal = s[:-5] > -87
    relative = (y[0, 0, :-5].double() / expected[:-5] - 1).abs()
    assert relative[normal].max() < 4 * torch.finfo(torch.float32).eps
    assert (y[0, 0, :-5].double() - expected[:-5]).abs()[~normal].max() < 2e-45
    torch.testing.assert_close(y[0, 0, -5:], torch.exp(s[-5:]), rtol=0, atol=0, equal_nan=True)
    for value in (-100.0, -30.0, -3.0, -2.0, -1.0, 0.0, 5.0, 20.0, 80.0):
        point = torch.full((1, 1, 1), value)
        _, log_det = ops.affine_coupling(point, point, point, None, "sigmoid", False)
        expected = torch.nn.functional.logsigmoid(point.double() + 2)
        torch.testing.assert_close(log_det.double(), expected.sum((1, 2)), rtol=1e-6, atol=0)


def bad_layer(**changes: object) -> list[object]:
    names = [
        "h",
        "conv_weight",
        "conv_bias",
        "res_skip_weight",
        "res_skip_bias",
        "cond",
        "cond_weight",
        "cond_bias",
    ]
    names += ["input_bias", "mask", "dilation", "causal", "res_scale", "residual"]
    arguments = layer_arguments(dtype=torch.float32, t=9)
    return [changes.get(name, value) for name, value in zip(names, arguments, strict=True)]


def bad_step(**changes: object) -> list[object]:
    x, hidden, *rest = flow_step_arguments(dtype=torch.float32, t=9)
    return [changes.get("x", x), changes.get("hidden", hidden), *rest]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.gate(torch.zeros(2, 4)), r"`x` must be \[B, 2G, T\].*got \[2, 4\]"),
        (lambda: ops.gate(torch.zeros(2, 5, 3)), r"`x` must be \[B, 2G, T\].*got \[2, 5, 3\]"),
        (
            lambda: ops.gate(torch.zeros(2, 4, 3, dtype=torch.float16)),
            "`x` must be float32, float64 or bfloat16.*float16",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(h=torch.zeros(2, 4, 9))),
            r"`conv_weight` must be \[2G, C, k\] with C = 4",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(h=torch.zeros(2, 5, 9).half())),
            "`h` must be float32, float64 or bfloat16.*float16",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(h=torch.zeros(2, 5, 9).bfloat16())),
            "`conv_weight` must be bfloat16 like the first argument; got float32",
        ),
        (lambda: ops.wn_layer(*bad_layer(conv_weight=torch.zeros(14, 5, 2))), "odd kernel size"),
        (
            lambda: ops.wn_layer(*bad_layer(conv_bias=torch.zeros(13))),
            r"`conv_bias` must be \[2G\] = \[14\]; got \[13\]",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(res_skip_weight=torch.zeros(4, 7))),
            "`res_skip_weight` must be .* R = 5",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(cond=torch.zeros(2, 4, 8))),
            r"`cond` must be \[B, Cc, T or 1\].*\[2, 4, 8\]",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(cond=torch.zeros(2, 4, 9).double())),
            "`cond` must be float32.*got float64",
        ),
        (lambda: ops.wn_layer(*bad_layer(cond_weight=None)), "`cond` must have 2G = 14 channels"),
        (lambda: ops.wn_layer(*bad_layer(cond=None)), "`cond_weight` must come with `cond`"),
        (
            lambda: ops.wn_layer(*bad_layer(input_bias=torch.zeros(3, 5))),
            r"`input_bias` must be \[B or 1, C\]",
        ),
        (
            lambda: ops.wn_layer(*bad_layer(mask=torch.zeros(2, 1, 8))),
            r"`mask` must be \[B, 1, T\] = \[2, 1, 9\]",
        ),
        (lambda: ops.wn_layer(*bad_layer(dilation=0)), "`dilation` must be at least 1; got 0"),
        (
            lambda: ops.wn(torch.zeros(1, 2, 3), [], [], [], [], None, [], [], [], None, [], False, 1.0, 1.0, False),
            "`conv_weights` must name at least one layer",
        ),
        (
            lambda: ops.affine_coupling(*[torch.zeros(1, 2, 3)] * 3, None, "tanh", False),
            '`form` must be "exp", "sigmoid" or "additive"; got "tanh"',
        ),
        (
            lambda: ops.affine_coupling(*[torch.zeros(1, 2, 3)] * 2, None, None, "exp", False),
            "`log_scale` must be given",
        ),
        (
            lambda: ops.invconv1x1(torch.zeros(1, 2, 3), torch.zeros(3, 3), None, True),
            r"`weight` must be \[C, C\] = \[2, 2\]; got \[3, 3\]",
        ),
        (
            lambda: ops.flow_step(*bad_step(x=torch.zeros(2, 5, 9))),
            r"`x` must be \[B, C, T\] with C even; got \[2, 5, 9\]",
        ),
        (
            lambda: ops.flow_step(*bad_step(hidden=torch.zeros(2, 17, 8))),
            r"`hidden` must be \[B, S, T\] = \[2, 17, 9\]; got \[2, 17, 8\]",
        ),
        (
            lambda: ops.flow_step(*bad_step(hidden=torch.zeros(2, 17, 9, dtype=torch.float64))),
            "`hidden` must be float32 like the first argument; got float64",
        ),
        (
            lambda: ops.actnorm(torch.zeros(1, 2, 3), torch.zeros(3), torch.zeros(2), None, False),
            r"`loc` must be \[C\] = \[2\]; got \[3\]",
        ),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(BAD_ARGUMENT, match=message) as caught:
        call()  # type: ignore[operator]
    assert caught.type in BAD_ARGUMENT  # and no subclass, such as NotImplementedError


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(isa: str) -> None:
    """Processors differ: kernels that this one would not choose must be right too, or be refused by name."""
    script = f"""
import sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_native as t
torch.manual_seed(0)
try:
    t.ops.gate(torch.zeros(1, 2, 1))
except t.BAD_ARGUMENT as error:
    assert "`FASTFLOW_CPU_ISA` must be one of baseline" in str(error), error
    print("refused")
    sys.exit()
for dtype in t.DTYPES:
    x = 4 * t.rand(2, 6, 131, dtype=dtype)
    t.close(t.ops.gate(x), t.gate_formula(x.double()))
    for cond in ("local", "global", "projected", "none"):
        t.check_layer(t.layer_arguments(dtype=dtype, t=131, c=13, g=25, cond=cond, mask=True, input_bias=2))
for threads in (1, 2, 7):
    torch.set_num_threads(threads)
    for dilation, time in ((1, 1), (1, 33), (2, 40), (4, 130), (8, 9), (16, 130), (32, 130), (64, 150)):
        arguments = t.layer_arguments(dtype=torch.float32, t=time, c=9, dilation=dilation, causal=time == 40)
        t.check_layer(arguments)
        if time >= 33:  # of a few values, an error says little
            t.check_bfloat16_layer(arguments)
        t.check_gate_backward(arguments)
for phases, frames in ((1, 40), (2, 1), (3, 17), (32, 7), (8, 40)):
    dilations = t.phased_dilations(phases)
    t.check_phases(phases, frames, dilations, dtype=torch.float32, causal=frames == 17, mask=True)
    t.check_phases(phases, frames, dilations[:4], dtype=torch.float64, taps=5)
    if frames > 1:
        t.check_bfloat16_phases(phases, frames, dilations)
for dtype in t.SMALL_DTYPES:
    t.test_gate(131, dtype)
    for form in ("exp", "sigmoid", "additive"):
        for reverse in (False, True):
            t.test_affine_coupling(form, True, reverse, dtype)
            t.test_flow_step(form, reverse, dtype)
    t.test_invconv1x1(33, dtype)
    t.test_actnorm(True, dtype)
for dtype in t.DTYPES:
    t.test_backwards_against_the_reference_formulas(dtype)
t.test_flow_step_channels(66)
t.test_coupling_is_accurate_everywhere()
print("right")
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FASTFLOW_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    expected = {"right"} if isa == "baseline" else {"right", "refused"}
    assert result.stdout.strip() in expected


@pytest.mark.parametrize("kept", [50_000, 63])
def test_a_cut_off_library_is_a_reason_not_a_crash(tmp_path: Path, kept: int) -> None:
    library = Path(_native.__file__).with_name("_cpu.so")
    if not library.exists():
        pytest.skip("the cpu library is not built")
    (tmp_path / "_cpu.so").write_bytes(library.read_bytes()[:kept])
    assert _native._load(tmp_path / "_cpu.so", "") == "fastflow/_cpu.so cannot be loaded: the file is cut off"


def test_a_library_that_refuses_to_run_is_a_backend_that_cannot() -> None:
    program = (
        "from fastflow.ops import registry, gate\nimport torch\n"
        "print(registry.status()[1].reason)\nprint(gate(torch.zeros(1, 2, 3)).shape)"
    )
    environment = os.environ | {"FASTFLOW_CPU_ISA": "abacus"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    reason, shape = result.stdout.splitlines()
    assert "`FASTFLOW_CPU_ISA` must be one of baseline" in reason or "is not built" in reason
    assert shape == "torch.Size([1, 1, 3])"
