"""Training goes the same way on every backend, and by every way of the backward: losses of 200 steps within 1 %."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from fastflow import use_backend
from fastflow.models import WaveGlow, WaveGlowLoss
from fastflow.nn.backprop import BACKPROPS
from fastflow.ops import registry

WAYS = [("reference", "invert")]
if registry.status()[1].can_run:
    WAYS += [("cpu", backprop) for backprop in BACKPROPS]
STEPS = 200
SEGMENT, HOP, BANDS = 128, 16, 4


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Two noisy tones of random pitch and level, and frames that say both: mel [2, 4, 9] and audio [2, 128]."""
    generator = torch.Generator().manual_seed(number)
    pitch, level = torch.rand(2, 1, generator=generator), torch.rand(2, 1, generator=generator)
    time = torch.arange(SEGMENT)
    audio = (0.1 + level) * torch.sin((0.1 + pitch) * time + 2 * math.pi * torch.rand(2, 1, generator=generator))
    mel = torch.cat((pitch, level, pitch * level, torch.ones(2, 1)), 1)
    noise = torch.randn(2, SEGMENT, generator=generator)
    return mel[:, :, None].expand(-1, -1, SEGMENT // HOP + 1), audio + 0.02 * noise


@cache
def losses(backend: str, backprop: str) -> Tensor:
    """Train from the same start, and return each step's loss."""
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_channels": 16, "kernel_size": 3}
    model = WaveGlow(BANDS, 2, 8, 1, 2, sizes, hop_length=HOP, win_length=2 * HOP, backprop=backprop)
    optimizer, criterion = torch.optim.Adam(model.parameters(), 1e-3), WaveGlowLoss()
    found = []
    with use_backend(backend):
        for number in range(STEPS):
            loss = criterion(model(batch(number)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


def test_the_reference_learns() -> None:
    curve = losses("reference", "autograd")
    assert curve[-20:].mean() < curve[:20].mean() - 0.5


@pytest.mark.parametrize(("backend", "backprop"), WAYS)
def test_200_steps(backend: str, backprop: str) -> None:
    """Interpreted kernels would take minutes: what they compute is compared operation by operation."""
    expected = losses("reference", "autograd")
    off = (losses(backend, backprop) - expected).abs() / expected.abs().clamp(min=0.1)  # it goes through zero
    assert off.max() <= 0.01
