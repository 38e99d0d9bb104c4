"""Synthetic speech-like audio: a gliding harmonic tone with a slow envelope."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastflow.audio import write_audio
from fastflow.train import SegmentDataset


def tone(seconds: float, pitch: float, seed: int = 0) -> Tensor:
    """[T], float32, at 22,050 Hz."""
    time = torch.arange(int(22050 * seconds)) / 22050
    phase = 2 * math.pi * pitch * (time + 0.02 * torch.sin(2 * math.pi * 1.3 * time))
    harmonics = torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    return 0.1 * harmonics * (1 + torch.sin(2 * math.pi * 3 * time)) + 0.003 * noise


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A directory with two audio files, one of them in a subdirectory, and a file that is none."""
    folder = tmp_path / "speech"
    (folder / "more").mkdir(parents=True)
    write_audio(folder / "low.flac", tone(1.0, 110.0, 1), 22050)
    write_audio(folder / "more" / "high.wav", tone(0.5, 220.0, 2), 22050)
    (folder / "notes.txt").write_text("not audio\n")
    return folder


@pytest.fixture
def dataset(speech: Path) -> SegmentDataset:
    return SegmentDataset([speech], segment=2048, seed=3)
