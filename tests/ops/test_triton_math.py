"""The functions that Triton kernels share, under the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="on a GPU test_gpu.py runs the kernels")

from triton import language as tl  # noqa: E402

from fastflow.ops import triton_math  # noqa: E402


@triton.jit
def cast_kernel(x, y, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(y + i, triton_math.cast(tl.load(x + i), y.dtype.element_ty))


@triton.jit
def gate_kernel(u, v, y, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(y + i, triton_math.gate(tl.load(u + i), tl.load(v + i), y.dtype.element_ty))


def padded(values: Any) -> torch.Tensor:
    """The values as float32 [64], the rest random."""
    given = torch.tensor(values, dtype=torch.float32)
    return torch.cat((given, torch.randn(64 - len(given))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cast_rounds_as_pytorch_does(dtype: torch.dtype) -> None:
    ties = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2.0**-100, -0.0]
    x = padded([*ties, float("inf"), -float("inf"), float("nan"), 3.39e38])
    y = torch.empty(64, dtype=dtype)
    cast_kernel[(1,)](x, y, 64)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_gate_holds_where_exponentials_overflow_and_passes_nan() -> None:
    u = padded([0.0, 1e-4, -1e-4, 15.0, -15.0, 90.0, -90.0, -90.0, 3e38, -3e38, float("nan"), 1.0])
    v = padded([0.0, 0.0, 0.0, 0.0, 0.0, 90.0, -90.0, 90.0, 3e38, 3e38, 1.0, float("nan")])
    y = torch.empty(64)
    gate_kernel[(1,)](u, v, y, 64)
    want = torch.tanh(u.double()) * torch.sigmoid(v.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-6, equal_nan=True)
