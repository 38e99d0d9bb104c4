"""The CUDA library, host code and kernels, emulated: the contract of `tests/ops` on every instruction set.

The pretended device decides which kernels the host chooses: 75 the portable ones, 80 those on mma.sync, 90 those on
wgmma and the copy engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastflow import ops
from tests.ops import test_contract as contract
from tests.ops.cases import CASES, WIDE, Case, convert

GATED = (ops.wn, ops.wn_layer)
SMALL = [c for c in CASES if c.function not in GATED]
NARROW = [c for c in CASES if c.function in GATED]
HALVES = [torch.float16, torch.bfloat16]

by_small = pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
by_narrow = pytest.mark.parametrize("case", NARROW, ids=lambda c: c.name)
by_wide = pytest.mark.parametrize("case", WIDE, ids=lambda c: c.name)
by_capability = pytest.mark.parametrize("capability", [80, 90])


@pytest.fixture(autouse=True)
def device(emulator: Any) -> Iterator[Any]:
    """Three multiprocessors, so that a block takes several tiles; threads in random order."""
    emulator.device(capability=75, multiprocessors=3)
    emulator.schedule("random", 1)
    yield emulator
    emulator.schedule("in order", 0)


@by_small
@pytest.mark.parametrize("length", [0, 1, 9, 127, 130])
def test_small_operations(case: Case, length: int) -> None:
    contract.test_float32_against_the_float64_reference(case, "cuda", length)


@by_small
@pytest.mark.parametrize("dtype", HALVES)
def test_small_operations_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    contract.test_half_precision_keeps_its_dtype_and_its_bound(case, dtype, "cuda")
    contract.test_half_precision_gradients_keep_their_bound(case, dtype, "cuda")


@by_small
def test_gradients_of_small_operations(case: Case) -> None:
    contract.test_gradients_of_backends_against_the_reference(case, "cuda")


@by_narrow
@pytest.mark.parametrize("length", [0, 1, 9, 70])
def test_portable_blocks(case: Case, length: int) -> None:
    contract.test_float32_against_the_float64_reference(case, "cuda", length)


@by_narrow
def test_portable_blocks_in_double(case: Case) -> None:
    args, options = case.arguments(19, torch.float64)
    for got, want in zip(contract.run(case, args, options, "cuda"), contract.run(case, args, options), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in NARROW if "strided" in c.name or "mask" in c.name], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", HALVES)
def test_portable_blocks_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    keeps_the_bound(case, dtype, 33)


@by_narrow
def test_gradients_of_portable_blocks(case: Case) -> None:
    contract.test_gradients_of_backends_against_the_reference(case, "cuda")


def keeps_the_bound(case: Case, dtype: torch.dtype, length: int) -> None:
    """Twice plain PyTorch's error in that dtype, as in `tests/ops/test_contract.py`."""
    args, options = case.arguments(length, dtype)
    plain = contract.run(case, args, options)
    expected = contract.run(case, convert(args, torch.float64), convert(options, torch.float64))
    for g, p, e in zip(contract.run(case, args, options, "cuda"), plain, expected, strict=True):
        assert g.dtype == p.dtype and g.shape == p.shape
        if g.numel():
            size = contract.rms(e).clamp(min=1.0)
            assert contract.rms(g - e) <= 2 * contract.rms(p - e) + 1e-5 * size


@by_wide
@by_capability
@pytest.mark.parametrize(("dtype", "length"), [(torch.bfloat16, 1), (torch.bfloat16, 67), (torch.float16, 200)])
def test_matrix_units(case: Case, capability: int, dtype: torch.dtype, length: int, device: Any) -> None:
    device.device(capability=capability, multiprocessors=4)
    keeps_the_bound(case, dtype, length)


@pytest.mark.parametrize(
    ("phases", "length", "multiprocessors", "kernel"),
    [(3, 60, 2, "128, 2, 4"), (2, 280, 2, "128, 2, 4"), (2, 40, 20, "64, 1, 4")],
    ids=["by time, one tile a phase", "by time, two tiles a phase", "by rows"],
)
def test_phases_in_clusters(phases: int, length: int, multiprocessors: int, kernel: str, device: Any) -> None:
    """Blocks that share weights, but not all of them the conditioning's; and what lies beyond the last tile."""
    from tests.ops.cases import _wn

    case = Case("phases", ops.wn, _wn(layers=2, channels=8, gate=72, skip=8, cond_channels=8, phases=phases))
    device.device(capability=90, multiprocessors=multiprocessors)
    device.statistics()
    keeps_the_bound(case, torch.bfloat16, length)
    assert any(f"<bfloat16, {kernel}, " in launch["kernel"] for launch in device.statistics())


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@by_wide
@pytest.mark.usefixtures("tf32")
def test_tf32(case: Case, device: Any) -> None:
    """Has as many bits as float16, and only factors are rounded to it: PyTorch's error in float16 is the bound."""
    device.device(capability=80, multiprocessors=3)
    args, options = case.arguments(67, torch.float32)
    expected = contract.run(case, convert(args, torch.float64), convert(options, torch.float64))
    plain = contract.run(case, convert(args, torch.float16), convert(options, torch.float16))
    got = contract.run(case, args, options, "cuda")
    for g, p, e in zip(got, plain, expected, strict=True):
        assert g.dtype == torch.float32
        if g.numel():
            assert 1e-6 * contract.rms(e) <= contract.rms(g - e) <= contract.rms(p - e)


@by_wide
def test_gradients_on_matrix_units(case: Case, device: Any) -> None:
    device.device(capability=80, multiprocessors=3)
    contract.test_half_precision_gradients_keep_their_bound(case, torch.bfloat16, "cuda")


def test_more_layers_than_a_launch_takes(device: Any) -> None:
    from tests.ops.cases import _wn

    case = Case("deep", ops.wn, _wn(layers=35, channels=4, gate=4, skip=4, kernel=3, cond="none"))
    args, options = case.arguments(5, torch.float64)
    options["dilations"] = [1 + i % 3 for i in range(35)]
    (got,), (want,) = contract.run(case, args, options, "cuda"), contract.run(case, args, options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
