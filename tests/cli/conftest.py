"""A tiny random WaveGlow on disk, short inputs, and a way to run the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click.testing
import numpy as np
import pytest
import soundfile
import torch

from fastflow.checkpoints import save
from fastflow.cli.main import main
from fastflow.models import WaveGlow

Run = Callable[..., click.testing.Result]


def tiny_waveglow(n_group: int = 8) -> WaveGlow:
    torch.manual_seed(0)
    wn = {"n_layers": 1, "n_channels": 8, "kernel_size": 3}
    model = WaveGlow(80, 2, n_group, 4, 2, wn, conditioning="group")
    with torch.no_grad():  # the last convolution of an untrained WaveGlow is zero: conditioning would have no effect
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
        next(model.convinv[0].parameters()).mul_(8)  # its inverse makes the audio quiet: nothing is clipped
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(tiny_waveglow(), path)
    return path


@pytest.fixture
def run() -> Run:
    """Run `fastflow` with these arguments; anything but a clean exit fails the test."""

    def call(*arguments: object) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fastflow")
        # a traceback, to the user
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return call


@pytest.fixture
def vocode(run: Run, checkpoint: Path) -> Run:
    return lambda *arguments: run("vocode", "--model", checkpoint, *arguments)


@pytest.fixture
def mel() -> np.ndarray:
    return np.random.default_rng(0).normal(-4.0, 1.0, (80, 12)).astype(np.float32)


@pytest.fixture
def make_wav() -> Callable[..., Path]:
    """Write some noise as an audio file, with the directories it needs."""

    def make(path: Path, samples: int = 4000, sampling_rate: int = 22050, channels: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(samples).normal(0.0, 0.1, (samples, channels))
        soundfile.write(path, noise, sampling_rate)
        return path

    return make
