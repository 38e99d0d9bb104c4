"""The small operations, emulated, where the cases of all operations do not lead.

Rows long enough for whole tiles of 16-byte accesses, memory that does not start on such a boundary, matrices of many
channels, the widths of real networks in `flow_step`, and sums that are the same bits whatever the threads' order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow import ops, use_backend
from fastflow.ops.invconv1x1.api import multiply
from tests.ops import test_contract as contract
from tests.ops.cases import CASES, Case, _actnorm, _affine, _flow_step, _invconv, convert, tensors

HALVES = [torch.float16, torch.bfloat16]
LONG = [c for c in CASES if c.function in (ops.gate, ops.affine_coupling, ops.invconv1x1, ops.actnorm)]
WIDE = [
    Case("invconv 70", ops.invconv1x1, _invconv(False, channels=70)),
    Case("invconv 100 mask", ops.invconv1x1, _invconv(False, channels=100, mask=True)),
]
STEPS = [
    Case("step 8 of 64", ops.flow_step, _flow_step(channels=8, hidden=64, early=2)),
    Case("step 8 of 256", ops.flow_step, _flow_step(True, channels=8, hidden=256, early=2, layout="strided")),
    Case("step 6 of 520", ops.flow_step, _flow_step(True, channels=6, hidden=520, layout="strided")),
    Case("step 4 of 1104", ops.flow_step, _flow_step(channels=4, hidden=1104, layout="strided", form="sigmoid")),
    Case("step 4 of 1101", ops.flow_step, _flow_step(channels=4, hidden=1101, bias=False)),
    Case("step 12 of 72", ops.flow_step, _flow_step(True, channels=12, hidden=72, layout="strided", early=3)),
    Case("step 16 of 24, additive", ops.flow_step, _flow_step(channels=16, hidden=24, form="additive", early=5)),
    Case("step 32 of 264", ops.flow_step, _flow_step(channels=32, hidden=264, layout="strided", transform_first=True)),
    Case("step 32 of 40", ops.flow_step, _flow_step(True, channels=32, hidden=40, form="sigmoid")),
]

by_long = pytest.mark.parametrize("case", LONG, ids=lambda c: c.name)
by_step = pytest.mark.parametrize("case", STEPS, ids=lambda c: c.name)


@pytest.fixture(autouse=True)
def device(emulator: Any) -> Iterator[Any]:
    emulator.device(capability=75, multiprocessors=2)
    emulator.schedule("random", 3)
    yield emulator
    emulator.schedule("in order", 0)


def half_bound(case: Case, args: Any, options: Any) -> None:
    """Twice plain PyTorch's error in the dtype, as in `tests/ops/test_contract.py`."""
    plain = contract.run(case, args, options)
    wants = contract.run(case, convert(args, torch.float64), convert(options, torch.float64))
    for got, p, want in zip(contract.run(case, args, options, "cuda"), plain, wants, strict=True):
        assert got.dtype == p.dtype and got.shape == p.shape
        if got.numel():
            size = contract.rms(want).clamp(min=1.0)
            assert contract.rms(got - want) <= 2 * contract.rms(p - want) + 1e-5 * size


def gradients_agree(case: Case, length: int, dtype: torch.dtype = torch.float32) -> None:
    args, options = case.arguments(length, dtype)
    wants = contract.gradients(case, convert(args, torch.float64), convert(options, torch.float64), "reference")
    for got, want in zip(contract.gradients(case, args, options, "cuda"), wants, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * max(1.0, float(contract.rms(want))))


def moved(values: Any, by: int) -> Any:
    """The same arguments, dense, but each tensor starting `by`, `by` + 1, ... elements after an aligned address."""
    count = iter(range(by, by + 100))

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            k = next(count) % 16
            memory = torch.empty(x.numel() + k, dtype=x.dtype)
            return memory[k:].view(x.shape).copy_(x)
        if isinstance(x, list | tuple) and not isinstance(x, ops.PLU):
            return type(x)(move(v) for v in x)
        if isinstance(x, dict):
            return {k: move(v) for k, v in x.items()}
        return x

    return move(values)


@by_long
@pytest.mark.parametrize("length", [520, 601])
def test_whole_tiles(case: Case, length: int) -> None:
    contract.test_float32_against_the_float64_reference(case, "cuda", length)
    gradients_agree(case, length)


@by_long
@pytest.mark.parametrize("dtype", HALVES)
def test_whole_tiles_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    args, options = case.arguments(1104, dtype)
    half_bound(case, args, options)


@by_long
@pytest.mark.parametrize("length", [33, 260])
def test_double(case: Case, length: int) -> None:
    args, options = case.arguments(length, torch.float64)
    for got, want in zip(contract.run(case, args, options, "cuda"), contract.run(case, args, options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    wants = contract.gradients(case, args, options, "reference")
    for got, want in zip(contract.gradients(case, args, options, "cuda"), wants, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@by_long
@pytest.mark.parametrize("by", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_misaligned_memory(case: Case, by: int, dtype: torch.dtype) -> None:
    args, options = case.arguments(1028, dtype)
    got = contract.run(case, moved(args, by), moved(options, by), "cuda")
    for g, want in zip(got, contract.run(case, args, options, "cuda"), strict=True):
        # only the order of sums may differ
        torch.testing.assert_close(g, want, rtol=1e-5, atol=1e-4)


@by_long
@pytest.mark.parametrize("length", [601])
def test_the_same_bits_in_any_order(case: Case, length: int, device: Any) -> None:
    def both() -> list[Tensor]:
        return [*contract.run(case, args, options, "cuda"), *contract.gradients(case, args, options, "cuda")]

    args, options = case.arguments(length, torch.float32)
    first = both()
    for schedule, seed in (("in order", 0), ("reverse", 0), ("random", 7)):
        device.schedule(schedule, seed)
        assert all(torch.equal(a, b) for a, b in zip(both(), first, strict=True))


@by_step
def test_flow_step_at_the_widths_of_networks(case: Case, device: Any) -> None:
    for length in (1, 70):
        contract.test_float32_against_the_float64_reference(case, "cuda", length)
    args, options = case.arguments(40, torch.float64)
    for got, want in zip(contract.run(case, args, options, "cuda"), contract.run(case, args, options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    args, options = case.arguments(70, torch.float32)
    first = contract.run(case, args, options, "cuda")
    device.schedule("reverse")
    assert all(torch.equal(a, b) for a, b in zip(contract.run(case, args, options, "cuda"), first, strict=True))


@by_step
@pytest.mark.parametrize("dtype", HALVES)
def test_flow_step_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    args, options = case.arguments(70, dtype)
    half_bound(case, args, options)


@by_step
@pytest.mark.parametrize("dtype", HALVES)
def test_flow_step_with_a_half_precision_network(case: Case, dtype: torch.dtype) -> None:
    """x in float32, the network in 16 bits: products of 16-bit numbers, summed in float32, are all but exact."""
    args, options = case.arguments(70, torch.float32)
    x, hidden, end_weight, end_bias, *rest = args
    half = (x, *(convert(t, dtype) for t in (hidden, end_weight, end_bias)), *rest)
    wants = contract.run(case, convert(half, torch.float64), convert(options, torch.float64))
    for got, want in zip(contract.run(case, half, options, "cuda"), wants, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", WIDE, ids=lambda c: c.name)
def test_matrices_of_many_channels(case: Case) -> None:
    contract.test_float32_against_the_float64_reference(case, "cuda", 70)
    gradients_agree(case, 70)
    args, options = case.arguments(70, torch.bfloat16)
    half_bound(case, args, options)


def test_half_precision_times_a_float32_matrix() -> None:
    for channels in (4, 20, 40):
        x = torch.randn(2, channels, 37).half()
        matrix = torch.randn(channels, channels) / channels**0.5
        grad = torch.randn(2, channels, 37).half()
        results = []
        for backend, dtype in (("reference", torch.float64), ("cuda", torch.float16)):
            leaves = x.to(dtype).requires_grad_(), (matrix.double() if backend == "reference" else matrix.clone())
            leaves[1].requires_grad_()
            with use_backend(backend):
                y = multiply(*leaves)
                results.append([y, *torch.autograd.grad(y, leaves, grad.to(dtype))])
        for want, got in zip(*results, strict=True):
            atol = 2e-2 if got.dtype == torch.float16 else 1e-4
            torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=atol)
        assert results[1][2].dtype == torch.float32


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[0.0, 2, 0], [0, 0, -3], [5, 0, 0]], 2 * math.log(30)),  # every pivot is in another row
        ([[1e-20, 1, 0], [1, 1, 0], [0, 0, 1.0]], 0.0),  # without pivoting, nothing of it is right
        ([[1.0, 2, 3], [2, 4, 6], [0, 1, 1]], -math.inf),
        ([[1.0, 2, 3], [math.nan, 4, 5], [0, 1, 1]], math.nan),
    ],
)
def test_log_det_of_awkward_weights(weight: list[list[float]], expected: float, size: int) -> None:
    wide = torch.eye(size)
    wide[-3:, -3:] = torch.tensor(weight)
    with use_backend("cuda"):
        _, log_det = ops.invconv1x1(torch.zeros(1, size, 2), wide)
    torch.testing.assert_close(log_det, torch.tensor([expected]), equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 8, 32, 40])
def test_the_gradient_of_log_det_needs_pivoting(channels: int) -> None:
    """A weight whose diagonal is zero but for one element."""
    weight = torch.eye(channels).roll(1, 0) * torch.linspace(0.5, 2, channels) + torch.eye(channels).roll(2, 0)
    weight[0, 0] = 1e-12
    weight.requires_grad_(True)
    with use_backend("cuda"):
        _, log_det = ops.invconv1x1(torch.zeros(2, channels, 7), weight)
        (got,) = torch.autograd.grad(log_det.sum(), weight)
    expected = 14 * torch.linalg.inv(weight.detach().double()).t()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-100.0, -20.0, 0.0, 5.0, 10.0, 15.0])
def test_the_log_of_a_sigmoid_near_one_keeps_its_digits(value: float) -> None:
    log_scale = torch.full((1, 2, 300), value)
    x = torch.randn(1, 2, 300)
    with use_backend("cuda"):
        _, log_det = ops.affine_coupling(x, x, log_scale, form="sigmoid")
    expected = torch.nn.functional.logsigmoid(log_scale.double() + 2).sum((1, 2))
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-5, atol=0)


EMPTY = [
    Case("gate", ops.gate, lambda t, dtype: ((torch.randn(2, 6, t, dtype=dtype),), {})),
    Case("affine", ops.affine_coupling, _affine("exp", False, mask=True)),
    Case("invconv", ops.invconv1x1, _invconv(False, mask=True)),
    Case("actnorm", ops.actnorm, _actnorm(True, mask=True)),
    Case("flow_step", ops.flow_step, _flow_step(early=1)),
]


@pytest.mark.parametrize("case", EMPTY, ids=lambda c: c.name)
def test_nothing_to_do(case: Case, device: Any) -> None:
    """No batch entries, or no steps: nothing is launched, and sums are zero."""
    device.statistics()
    for of_batch in (True, False):
        args, options = case.arguments(3 if of_batch else 0, torch.float32)
        if of_batch:
            args = tuple(t[:0] if isinstance(t, Tensor) and t.dim() == 3 else t for t in args)
            options = {k: t[:0] if isinstance(t, Tensor) else t for k, t in options.items()}
        for got, want in zip(contract.run(case, args, options, "cuda"), contract.run(case, args, options), strict=True):
            torch.testing.assert_close(got, want)
        if case.function is not ops.flow_step:
            wants = contract.gradients(case, args, options, "reference")
            for got, want in zip(contract.gradients(case, args, options, "cuda"), wants, strict=True):
                torch.testing.assert_close(got, want)
    assert device.statistics() == []


def test_flow_step_says_how_many_channels_it_takes() -> None:
    args, options = _flow_step(channels=34, hidden=8)(5, torch.float32)
    with use_backend("cuda"), pytest.raises(Exception, match="at most 32"):
        list(tensors(ops.flow_step(*args, **options)))
