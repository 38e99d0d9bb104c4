"""The Triton kernels of the small operations where the cases of all operations do not lead."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastflow import ops, use_backend
from fastflow.ops import registry
from tests.ops.cases import BACKENDS

pytestmark = pytest.mark.skipif("triton" not in BACKENDS, reason=registry.status()[2].reason)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("value", [-100.0, -20.0, 0.0, 5.0, 10.0, 15.0])
def test_the_log_of_a_sigmoid_near_one_keeps_its_digits(value: float) -> None:
    """log(1 + e^-17) is nothing where 1 + e^-17 rounds to 1, and off by a tenth where it nearly does."""
    log_scale = torch.full((1, 2, 300), value, device=DEVICE)
    x = torch.randn(1, 2, 300, device=DEVICE)
    with use_backend("triton"):
        _, log_det = ops.affine_coupling(x, x, log_scale, form="sigmoid")
    expected = torch.nn.functional.logsigmoid(log_scale.double() + 2).sum((1, 2))
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-5, atol=0)


def test_more_partial_sums_than_one_load_takes() -> None:
    """Of the mask's steps and of the log scales; interpreted, a program takes 16 or 32 steps."""
    length = 32 * 1100 + 5
    x, log_scale = (torch.randn(1, 1, length, device=DEVICE) for _ in range(2))
    mask = (torch.arange(length, device=DEVICE) < length - 7).float()[None, None]
    weight = torch.full((1, 1), 2.0, device=DEVICE)
    results: list[list[Tensor]] = []
    for backend in ("reference", "triton"):
        with use_backend(backend):
            results.append(
                [
                    *ops.affine_coupling(x, x, 0.1 * log_scale),
                    *ops.invconv1x1(x, weight, mask=mask),
                    *ops.actnorm(x, weight[0], weight[0], mask=mask),
                ]
            )
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[0.0, 2, 0], [0, 0, -3], [5, 0, 0]], 2 * math.log(30)),  # every pivot is in another row
        ([[1e-20, 1, 0], [1, 1, 0], [0, 0, 1.0]], 0.0),  # without pivoting, nothing of it is right
        ([[1.0, 2, 3], [2, 4, 6], [0, 1, 1]], -math.inf),
        ([[1.0, 2, 3], [math.nan, 4, 5], [0, 1, 1]], math.nan),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of log(0) and of NaN
def test_log_det_of_awkward_weights(weight: list[list[float]], expected: float) -> None:
    with use_backend("triton"):
        _, log_det = ops.invconv1x1(torch.zeros(1, 3, 2, device=DEVICE), torch.tensor(weight, device=DEVICE))
    torch.testing.assert_close(log_det.cpu(), torch.tensor([expected]), equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 32])
def test_the_gradient_of_log_det_needs_pivoting(channels: int) -> None:
    """A weight whose diagonal is zero but for one element."""
    weight = torch.eye(channels).roll(1, 0) * torch.linspace(0.5, 2, channels) + torch.eye(channels).roll(2, 0)
    weight[0, 0] = 1e-12
    weight = weight.to(DEVICE).requires_grad_(True)
    x = torch.zeros(2, channels, 7, device=DEVICE)
    with use_backend("triton"):
        _, log_det = ops.invconv1x1(x, weight)
        (got,) = torch.autograd.grad(log_det.sum(), weight)
    expected = 14 * torch.linalg.inv(weight.detach().double()).t()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
