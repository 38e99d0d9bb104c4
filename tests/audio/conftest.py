"""A synthetic voice: what the tests of this folder measure and write."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

RATE = 22050


def make_voice(seconds: float, pitch: float) -> Tensor:
    """Harmonics of a gliding pitch under three formants, four syllables a second, and a little breath."""
    time = np.arange(int(seconds * RATE)) / RATE
    f0 = pitch * 2 ** (np.sin(2 * np.pi * 0.7 * time) / 6)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    vowel = np.sin(2 * np.pi * 1.3 * time)
    formants = [
        (600 + 200 * vowel, 90.0, 1.0),
        (1400 - 500 * vowel, 120.0, 0.5),
        (2700 + 100 * vowel, 200.0, 0.2),
    ]
    signal = np.zeros_like(time)
    for harmonic in range(1, int(4000 / pitch)):
        gain = sum(weight / (1 + ((harmonic * f0 - centre) / width) ** 2) for centre, width, weight in formants)
        signal += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * time), 0, None) ** 0.5
    breath = np.random.default_rng(0).standard_normal(len(time))
    signal = syllables * (signal + 0.02 * breath) + 1e-4 * breath
    return torch.from_numpy(0.5 * signal / np.abs(signal).max()).float()


@pytest.fixture(scope="session")
def voice() -> Tensor:
    """[T], float32, 2.5 s at 22,050 Hz, peak 0.5."""
    return make_voice(2.5, pitch=120.0)


@pytest.fixture(scope="session")
def higher_voice() -> Tensor:
    """The same words a semitone higher."""
    return make_voice(2.5, pitch=120.0 * 2 ** (1 / 12))
