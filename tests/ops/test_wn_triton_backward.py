"""The gated stack's Triton backward, called directly, against the reference's in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow import ops, use_backend
from fastflow.ops import registry
from tests.ops.cases import BACKENDS, CASES, Case, convert, tensors

pytestmark = pytest.mark.skipif("triton" not in BACKENDS, reason="no GPU, and Triton does not interpret")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVERYTHING = [True] * 9


def on_device(values: Any) -> Any:
    if isinstance(values, list | tuple):
        return type(values)(on_device(v) for v in values)
    return values.to(DEVICE) if isinstance(values, Tensor) else values


def named(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def wide(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer whose every size is more than one of the interpreter's blocks of 16, and no multiple of it."""

    def r(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, dtype=dtype)

    channels, gate, skip, cond = 20, 18, 17, 21
    mask = (torch.rand(2, 1, t) < 0.8).to(dtype)
    weights = (r(2 * gate, channels, 3), r(2 * gate), r(channels + skip, gate), r(channels + skip))
    args = (r(2, channels, t), *weights, r(2, cond, t), r(2 * gate, cond), r(2 * gate), r(2, channels), mask)
    return args, {"dilation": 2, "causal": False, "res_scale": 0.7, "residual": True}


WIDE = Case("wn_layer wide", ops.wn_layer, wide)


def backward(
    case: Case, backend: str, args: Any, options: dict[str, Any], needs: list[bool] = EVERYTHING
) -> list[Tensor]:
    """The gradients for outputs' gradients that depend on nothing but the shapes."""
    op = case.function.__name__
    args = on_device(args)
    outs = registry._implementations["reference"][op](*args, *options.values())
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in tensors(outs)]
    grads = [g.to(args[0].dtype).to(DEVICE) for g in grads]
    return [
        g.cpu() for g in registry._implementations[backend][f"{op}_backward"](*grads, *args, *options.values(), needs)
    ]


def argument_of(args: Any) -> list[int]:
    """Which differentiable argument each gradient belongs to."""
    if not isinstance(args[1], list):
        return list(range(9))
    counts = [len(x) if isinstance(x, list) else int(x is not None) for x in args[:9]]
    return [i for i, count in enumerate(counts) for _ in range(count)]


def check(case: Case, length: int) -> None:
    args, options = case.arguments(length, torch.float32)
    got = backward(case, "triton", args, options)
    expected = backward(case, "reference", args, options)
    for g, e, i in zip(got, expected, argument_of(args), strict=True):
        if args[i] is not None:  # what is returned for None is never looked at
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["wn_layer strided", "wn_layer global", "wn_layer bare", "wn causal", "wn projected global"]
)
@pytest.mark.parametrize("length", [0, 1, 2, 9])
def test_short_lengths(name: str, length: int) -> None:
    check(named(name), length)


@pytest.mark.parametrize(
    ("name", "length"), [("wn_layer strided", 130), ("wn_layer projected", 130), ("wn causal", 35)]
)
def test_lengths_of_several_tiles(name: str, length: int) -> None:
    check(named(name), length)


def test_sizes_of_several_blocks() -> None:
    check(WIDE, 19)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["wn_layer wide", "wn", "wn projected"])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(name: str, dtype: torch.dtype) -> None:
    case = WIDE if name == WIDE.name else named(name)
    args, options = case.arguments(18, dtype)
    exact = backward(case, "reference", convert(args, torch.float64), options)
    plain = backward(case, "reference", args, options)
    ours = backward(case, "triton", args, options)
    assert all(g.dtype == dtype for g in ours)
    arguments = argument_of(args)
    for i in sorted(set(arguments)):  # all layers' together: by itself a short vector may be lucky or not
        got, other, expected = (
            torch.cat([g.flatten().double() for g, k in zip(grads, arguments, strict=True) if k == i])
            for grads in (ours, plain, exact)
        )
        if expected.numel():
            floor = 0.5 * torch.finfo(dtype).eps * expected.square().mean().sqrt()
            errors = [(x - expected).square().mean().sqrt() for x in (got, other)]
            assert errors[0] <= 2 * errors[1] + floor, f"argument {i}"


@pytest.mark.parametrize("name", ["wn", "wn_layer"])
def test_the_same_bits_every_time(name: str) -> None:
    case = named(name)
    args, options = case.arguments(18, torch.float32)
    first, second = (backward(case, "triton", args, options) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["wn_layer", "wn_layer global", "wn_layer projected"])
def test_each_gradient_of_a_layer_alone(name: str) -> None:
    case = named(name)
    args, options = case.arguments(5, torch.float32)
    everything = backward(case, "triton", args, options)
    for wanted in range(9):
        alone = backward(case, "triton", args, options, [i == wanted for i in range(9)])
        for i, (a, b) in enumerate(zip(everything, alone, strict=True)):
            assert torch.equal(a, b) if i == wanted else b.shape == (0,)


@pytest.mark.parametrize("name", ["wn causal", "wn projected global"])
@pytest.mark.parametrize("wanted", [(0,), (5,), (3, 4), (1, 2, 6, 7, 8)])
def test_some_gradients_of_a_block(name: str, wanted: tuple[int, ...]) -> None:
    case = named(name)
    args, options = case.arguments(3, torch.float32)
    everything = backward(case, "triton", args, options)
    some = backward(case, "triton", args, options, [i in wanted for i in range(9)])
    for a, b, i in zip(everything, some, argument_of(args), strict=True):
        assert torch.equal(a, b) if i in wanted else b.shape == (0,)


def test_nothing_beside_the_inputs_is_read() -> None:
    """Channels-last views, which are not copied, in the middle of NaN."""

    def hidden(*shape: int) -> Tensor:
        batch, channels, time = shape
        rows = torch.full((batch, time + 8, channels + 8), float("nan"))
        rows[:, 4:-4, 4:-4] = torch.randn(batch, time, channels)
        return rows[:, 4:-4, 4:-4].transpose(1, 2)

    args, options = named("wn_layer").arguments(19, torch.float32)
    weights = [torch.randn(8, 4, 3), torch.randn(8), torch.randn(4, 4), torch.randn(4)]
    args = on_device((hidden(2, 4, 19), *weights, hidden(2, 8, 19), torch.randn(8, 8), torch.randn(8), None, None))
    grad_h, grad_skip = torch.empty(2, 0, 19), hidden(2, 4, 19)
    plain = [None if x is None else x.contiguous() for x in args]
    values = [*options.values()][:-1]
    ours = registry._implementations["triton"]["wn_layer_backward"](
        *on_device((grad_h, grad_skip)), *args, *values, False, EVERYTHING
    )
    expected = registry._implementations["reference"]["wn_layer_backward"](
        *on_device((grad_h, grad_skip.contiguous())), *plain, *values, False, EVERYTHING
    )
    for g, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [False, True])
def test_conditioning_without_channels_is_none(block: bool) -> None:
    """Empty conditioning takes nothing from the other gradients."""
    h, conv, res_skip = torch.randn(2, 4, 9), torch.randn(8, 4, 3), torch.randn(4, 4)
    cond, cond_weight = torch.randn(2, 0, 9), torch.randn(8, 0)
    grads = []
    for backend in ("reference", "triton"):
        x = h.clone().requires_grad_(True)
        with use_backend(backend):
            if block:
                out = ops.wn(x, [conv], [], [res_skip], [], cond, [cond_weight], dilations=[1])
            else:
                out = ops.wn_layer(x, conv, None, res_skip, None, cond, cond_weight, residual=False)[1]
            (grad,) = torch.autograd.grad(out.square().sum(), x)
        grads.append(grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
