"""Training goes the same way on every backend, and by every way of the backward: losses of 200 steps within 1 %."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastflow import use_backend
from fastflow.models import WaveGlow, WaveGlowLoss
from fastflow.nn.backprop import BACKPROPS
from fastflow.ops import registry

STEPS = 200
SEGMENT, HOP, BANDS = 128, 16, 4


class Size(NamedTuple):
    """Of a WaveGlow, and of the batches that it learns from."""

    flows: int
    layers: int
    channels: int
    batch: int


SMALL = Size(flows=2, layers=2, channels=16, batch=2)
LEAST = Size(flows=1, layers=1, channels=4, batch=1)  # Triton's interpreter takes half a second for a step of it
CAN_RUN = {status.backend for status in registry.status() if status.can_run}
WAYS = [
    (SMALL, "reference", "invert"),
    *((SMALL, "cpu", backprop) for backprop in BACKPROPS if "cpu" in CAN_RUN),
    # interpreted; with a GPU, Triton's kernels are compiled for it and do not run here
    *((LEAST, "triton", "autograd") for _ in CAN_RUN & {"triton"} if not torch.cuda.is_available()),
]


def batch(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Two noisy tones of random pitch and level, and frames that say both: mel [B, 4, 9] and audio [B, 128]."""
    generator = torch.Generator().manual_seed(number)
    pitch, level = torch.rand(size, 1, generator=generator), torch.rand(size, 1, generator=generator)
    time = torch.arange(SEGMENT)
    audio = (0.1 + level) * torch.sin((0.1 + pitch) * time + 2 * math.pi * torch.rand(size, 1, generator=generator))
    mel = torch.cat((pitch, level, pitch * level, torch.ones(size, 1)), 1)
    noise = torch.randn(size, SEGMENT, generator=generator)
    return mel[:, :, None].expand(-1, -1, SEGMENT // HOP + 1), audio + 0.02 * noise


@cache
def losses(size: Size, backend: str, backprop: str, device: str = "cpu") -> Tensor:
    """Train from the same start on the same batches, and return each step's loss."""
    torch.manual_seed(0)
    sizes = {"n_layers": size.layers, "n_channels": size.channels, "kernel_size": 3}
    model = WaveGlow(BANDS, size.flows, 8, 1, 2, sizes, hop_length=HOP, win_length=2 * HOP, backprop=backprop)
    model.to(device)
    optimizer, criterion = torch.optim.Adam(model.parameters(), 1e-3), WaveGlowLoss()
    found = []
    with use_backend(backend):
        for number in range(STEPS):
            mel, audio = batch(number, size.batch)
            loss = criterion(model((mel.to(device), audio.to(device))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("size", [SMALL, LEAST])
def test_the_reference_learns(size: Size) -> None:
    curve = losses(size, "reference", "autograd")
    assert curve[-20:].mean() < curve[:20].mean() - 0.5


def assert_follows(size: Size, backend: str, backprop: str, device: str = "cpu") -> None:
    """The reference's losses on the same device, within 1 %."""
    expected = losses(size, "reference", "autograd", device)
    off = (losses(size, backend, backprop, device) - expected).abs() / expected.abs().clamp(min=0.1)  # through zero
    assert off.max() <= 0.01


@pytest.mark.parametrize(("size", "backend", "backprop"), WAYS)
def test_200_steps(size: Size, backend: str, backprop: str) -> None:
    assert_follows(size, backend, backprop)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("backprop", BACKPROPS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_200_steps_on_a_gpu(backend: str, backprop: str, no_tf32: None) -> None:
    status = next(status for status in registry.status() if status.backend == backend)
    if not status.can_run:  # a library that was not built is no failure; `fastflow info` says the same
        pytest.skip(status.reason)
    assert_follows(SMALL, backend, backprop, "cuda")
