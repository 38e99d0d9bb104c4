"""Where a run stops, skips or fails: what it leaves on disk, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastflow
from fastflow.audio import AudioError
from fastflow.models import SqueezeWave, WaveGlow
from fastflow.nn.backprop import ReconstructionError
from fastflow.train import DataError, SegmentDataset, TrainingError, train
from fastflow.train.display import Display
from fastflow.train.settings import Progress, Settings
from fastflow.train.signals import TOGETHER, stop_requests
from fastflow.train.state import state_path

WN: dict[str, int] = {"n_layers": 1, "n_channels": 8, "kernel_size": 3}


def waveglow() -> WaveGlow:
    torch.manual_seed(0)
    return WaveGlow(80, 2, 8, 4, 2, WN, conditioning="group")


class Scaled(SegmentDataset):
    """Its audio from batch `first` to `last` times `factor`."""

    first, last, factor = 0, 10**9, 1.0

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        mel, audio = super().batch(number, size, share)
        return mel, audio * (self.factor if self.first <= number <= self.last else 1)


@pytest.fixture
def scaled(speech: Path) -> Scaled:
    return Scaled([speech], segment=2048, seed=3)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_whole_group_saves_with_workers_too(processes: int, speech: Path, tmp_path: Path) -> None:
    """Of two processes, torchrun passes on to both what both have got already, and ends with an error of its own."""
    output = tmp_path / "m.safetensors"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "fastflow",
        "train",
        str(speech),
        "-o",
        str(output),
        "--segment",
        "2048",
    ]
    sizes = ["--n-flows", "1", "--n-group", "8", "--layers", "1", "--channels", "4", "--batch-size", "2"]
    options = ["--workers", "2", "--steps", "1000000", "--save-every", "0.001"]
    process = subprocess.Popen(
        [*command, *sizes, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not output.with_suffix(".json").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if processes == 1:
        assert process.returncode == 130, said
        assert "Traceback" not in said
    assert said.count("stopped; --resume goes on from") == 1, said
    step = json.loads(output.with_suffix(".json").read_text())["progress"]["step"]
    assert torch.load(state_path(output), weights_only=True)["progress"]["step"] == step > 0
    fastflow.load(output)


FAILING = """
import sys, torch
from fastflow.models import WaveGlow
from fastflow.train import SegmentDataset, train

class Failing(WaveGlow):
    def forward(self, batch):
        raise MemoryError("out of memory")

model = Failing(80, 1, 8, 4, 2, {"n_layers": 1, "n_channels": 4, "kernel_size": 3}, conditioning="group")
train(model, SegmentDataset([sys.argv[1]], segment=2048), sys.argv[2], steps=9, batch_size=2, workers=2)
"""


def test_a_failure_that_nothing_catches_ends_the_workers_too(speech: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING, str(speech), str(tmp_path / "m.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("MemoryError: out of memory")


def test_a_run_that_keeps_none_in_between_takes_over_no_saves(scaled: Scaled, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "save_every": 1e-9}
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=3, keep=5, **options)
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=2, overwrite=True, **options)
    (tmp_path / "m.step007.safetensors").touch()  # somebody else's
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=4, keep=5, resume=True, **options)
    kept = ["m.step007.safetensors", "m.step3.safetensors", "m.step4.safetensors"]
    assert sorted(p.name for p in tmp_path.glob("m.step*.safetensors")) == kept


def test_signals_that_come_together_are_one_and_a_later_one_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start jobs in the background without
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 1.1 * TOGETHER)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_skipped_step_leaves_batch_normalisation_as_it_was(scaled: Scaled, tmp_path: Path) -> None:
    """Two steps, between them one that is not finite, count as the two."""
    models = []
    for bad in (False, True):
        torch.manual_seed(0)
        models.append(SqueezeWave(80, 2, 128, 2, 16, WN))
        scaled.first, scaled.last, scaled.factor = 1, 1, float("nan") if bad else 1.0
        facts = train(models[-1], scaled, tmp_path / f"{bad}.safetensors", steps=2, batch_size=2)
        assert facts["progress"]["skipped_steps"] == bad
    counts = [{k: v for k, v in m.state_dict().items() if k.endswith("num_batches_tracked")} for m in models]
    assert counts[0] and all(int(v) == 2 for v in counts[0].values()) and all(int(v) == 1 for v in counts[1].values())
    assert all(b.isfinite().all() for b in models[1].buffers())
    fastflow.load(tmp_path / "True.safetensors")


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (float("nan"), "the 10th bad one in a row, whose loss is not finite"),
        (1e15, "the 10th bad one in a row, whose gradient is not finite"),
        (100.0, r"the 10th bad one in a row, whose loss is a spike: more than 3 above the smoothed -?\d+\.\d+"),
    ],
)
def test_ten_bad_steps_save_and_say_why(
    factor: float, cause: str, scaled: Scaled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastflow.train.loop.SETTLED_STEPS", 3)
    output = tmp_path / "m.safetensors"
    scaled.first, scaled.factor = 4, factor
    model = waveglow()
    with pytest.raises(TrainingError, match=rf"{cause}; {output} holds the weights before them: try a lower `lr`"):
        train(model, scaled, output, steps=1000, batch_size=2, spike=3.0, ema=0)
    assert json.loads(output.with_suffix(".json").read_text())["progress"]["step"] == 13
    saved = fastflow.load(output).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(saved[name], weight)


def test_where_inversion_fails_what_was_learned_is_saved(
    scaled: Scaled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, taken = tmp_path / "m.safetensors", scaled.batch

    def batch(number: int, *rest: Any) -> tuple[Tensor, Tensor]:
        if number == 3:
            monkeypatch.setattr("fastflow.nn.backprop.ATOL", -1.0)
        return taken(number, *rest)

    monkeypatch.setattr(scaled, "batch", batch)
    model = waveglow()
    model.backprop = "invert"
    with pytest.raises(ReconstructionError):
        train(model, scaled, output, steps=9, batch_size=2)
    assert json.loads(output.with_suffix(".json").read_text())["progress"]["step"] == 3
    model.backprop = "recompute"
    assert train(model, scaled, output, steps=9, batch_size=2, resume=True)["progress"]["step"] == 9


def test_damaged_validation_data_costs_no_training(
    scaled: Scaled, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = SegmentDataset([speech / "more"], segment=2048)

    def broken(clip: Any) -> Tensor:
        raise AudioError(f"{clip.path}: gone")

    monkeypatch.setattr(held_out, "_audio", broken)
    output = tmp_path / "m.safetensors"
    with pytest.raises(DataError, match="none of the 1 clips can be read any more"):
        train(waveglow(), scaled, output, steps=3, batch_size=2, validation=held_out)
    fastflow.load(output)
    assert torch.load(state_path(output), weights_only=True)["progress"]["step"] == 3


def test_the_last_step_is_saved_once(scaled: Scaled, speech: Path, tmp_path: Path, capsys: Any) -> None:
    held_out = SegmentDataset([speech / "more"], segment=2048)
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=3, batch_size=2, save_every=1e-9, validation=held_out)
    said = capsys.readouterr().err
    assert [said.count(f"step {n}  validation loss") for n in (1, 2, 3)] == [1, 1, 1]


def test_a_replaced_runs_saves_are_not_kept_among_the_new_ones(scaled: Scaled, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 2, "save_every": 1e-9, "keep": 3}
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=4, **options)
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=2, overwrite=True, **options)
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=3, resume=True, **options)
    for suffix in (".safetensors", ".state.pt"):
        assert sorted(p.name for p in tmp_path.glob(f"m.step*{suffix}")) == [f"m.step{n}{suffix}" for n in (1, 2, 3)]
    train(waveglow(), scaled, tmp_path / "m.safetensors", steps=1, overwrite=True, **options)
    assert sorted(p.name for p in tmp_path.glob("m.step*.safetensors")) == ["m.step1.safetensors"]


def test_a_resumed_run_goes_on_in_tensorboards_files(scaled: Scaled, speech: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held_out = SegmentDataset([speech / "more"], segment=2048)
    options: dict[str, Any] = {"batch_size": 2, "validation": held_out, "tensorboard": tmp_path / "board"}
    for steps in (2, 4):
        model = waveglow()
        model.backprop = "invert"
        train(model, scaled, tmp_path / "m.safetensors", steps=steps, log_every=0, resume=steps > 2, **options)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    errors = events.Scalars("reconstruction error over its bound")
    assert [event.step for event in errors] == [1, 2, 3, 4] and 0 < errors[-1].value < 1
    assert [event.step for event in events.Scalars("validation loss")] == [2, 4]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"`tensorboard` .*file cannot be written to: "):
        train(waveglow(), scaled, tmp_path / "n.safetensors", steps=1, tensorboard=tmp_path / "file")


def test_the_bar_of_a_resumed_run_begins_where_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    settings = Settings(2, 1e-3, 0.02, 1.0, 10.0, 10.0, 0.999, "float32", 10, None)
    with Display(settings, 10.0, Progress(step=4), unit="samples", silent=False, tensorboard=None) as display:
        assert display._bar.n == display._bar.initial == 0.4
