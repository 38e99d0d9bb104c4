from __future__ import annotations

import errno
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastflow
from fastflow.audio import MelSpectrogram
from fastflow.models import WaveGlow, WaveGlowLoss
from fastflow.train import SegmentDataset, TrainingError, train
from fastflow.train.loop import FINAL_LR, _schedule

CONFIG: dict[str, Any] = {
    "n_mel_channels": 80,
    "n_flows": 2,
    "n_group": 8,
    "n_early_every": 4,
    "n_early_size": 2,
    "WN_config": {"n_layers": 2, "n_channels": 8, "kernel_size": 3},
    "conditioning": "group",
}


def fresh() -> WaveGlow:
    torch.manual_seed(0)
    return WaveGlow(**CONFIG)


def loss_of(model: WaveGlow, data: SegmentDataset) -> float:
    with torch.no_grad():
        return float(WaveGlowLoss()(model(data.batch(1000, 8))))


def same(a: WaveGlow, b: WaveGlow) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Disturbed(SegmentDataset):
    """Does something before batch `at`."""

    at: int | None = None
    signal: int | None = None
    nan = False
    loud = False

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        mel, audio = super().batch(number, size, share)
        if self.at is None or number == self.at:
            if self.signal is not None:
                os.kill(os.getpid(), self.signal)
            if self.nan:
                audio = audio * float("nan")
            if self.loud:  # the square of which float32 cannot hold
                audio = audio + 1e30
        return mel, audio


@pytest.fixture
def disturbed(speech: Path) -> Disturbed:
    return Disturbed([speech], segment=2048, seed=3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_loss_falls(dataset: SegmentDataset, tmp_path: Path, precision: str) -> None:
    model = fresh()
    before = loss_of(model, dataset)
    facts = train(model, dataset, tmp_path / "m.safetensors", steps=40, batch_size=4, lr=5e-3, precision=precision)
    assert loss_of(model, dataset) < before - 2
    assert facts["progress"]["step"] == 40
    assert facts["progress"]["samples"] == 40 * 4 * 2048
    assert facts["progress"]["skipped_steps"] == 0


def test_outputs(dataset: SegmentDataset, tmp_path: Path) -> None:
    model = fresh()
    facts = train(model, dataset, tmp_path / "m.safetensors", steps=3, batch_size=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.safetensors", "m.state.pt", "speech"]
    assert json.loads((tmp_path / "m.json").read_text()) == facts
    assert facts["config"] == model.config
    assert facts["data"]["files"] == 2
    assert same(fastflow.load(str(tmp_path / "m.safetensors")), model)
    assert not model.training


def test_stored_in_half_precision(dataset: SegmentDataset, tmp_path: Path) -> None:
    model = fresh()
    train(model, dataset, tmp_path / "m.safetensors", steps=2, batch_size=2, dtype=torch.float16)
    assert same(fastflow.load(str(tmp_path / "m.safetensors")), model.half().float())


def test_resumed_equals_uninterrupted_bit_for_bit(disturbed: Disturbed, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 8, "batch_size": 2, "lr": 3e-3}
    whole = fresh()
    train(whole, disturbed, tmp_path / "whole.safetensors", **settings)

    disturbed.at, disturbed.signal = 4, signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), disturbed, tmp_path / "parts.safetensors", **settings)
    assert json.loads((tmp_path / "parts.json").read_text())["progress"]["step"] == 5
    stopped = fastflow.load(str(tmp_path / "parts.safetensors"))

    disturbed.signal = None
    torch.manual_seed(99)
    resumed = WaveGlow(**CONFIG)
    facts = train(resumed, disturbed, tmp_path / "parts.safetensors", **settings, resume=True)
    assert facts["progress"]["step"] == 8
    assert same(resumed, whole)
    assert not same(stopped, whole)


def test_signal_handlers_are_put_back(disturbed: Disturbed, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    disturbed.at, disturbed.signal = 0, signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), disturbed, tmp_path / "m.safetensors", steps=2, batch_size=2)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_step_that_is_not_finite_is_skipped_and_counted(disturbed: Disturbed, tmp_path: Path) -> None:
    disturbed.at, disturbed.nan = 2, True
    model = fresh()
    facts = train(model, disturbed, tmp_path / "m.safetensors", steps=4, batch_size=2)
    assert facts["progress"]["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_infinite_loss_does_not_stay_in_the_smoothed_one(disturbed: Disturbed, tmp_path: Path) -> None:
    disturbed.at, disturbed.loud = 2, True
    facts = train(fresh(), disturbed, tmp_path / "m.safetensors", steps=4, batch_size=2)
    assert facts["progress"]["skipped_steps"] == 1
    assert math.isfinite(facts["progress"]["loss"])
    json.loads((tmp_path / "m.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_ten_steps_in_a_row_that_are_not_finite_stop(disturbed: Disturbed, tmp_path: Path) -> None:
    disturbed.nan = True
    with pytest.raises(
        TrainingError, match=r"loss nan and gradient norm nan at step 9, the 10th bad one in a row.*lower `lr`"
    ):
        train(fresh(), disturbed, tmp_path / "m.safetensors", steps=40, batch_size=2)


def test_a_budget_in_minutes_ends(dataset: SegmentDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = train(fresh(), dataset, tmp_path / "m.safetensors", minutes=0.005, batch_size=2)
    assert facts["progress"]["seconds"] >= 0.3
    assert "100.0 %  step" in capsys.readouterr().err


def test_schedule() -> None:
    rates = [_schedule(i / 100, 0.1) for i in range(101)]
    assert rates[0] > 0
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(FINAL_LR)
    assert _schedule(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"give `steps` or `minutes`, one of them; got None and None"),
        ({"steps": 3, "minutes": 1.0}, r"one of them; got 3 and 1\.0"),
        ({"steps": 0}, r"`steps` must be more than 0; got 0"),
        ({"minutes": -1.0}, r"`minutes` must be more than 0; got -1\.0"),
        ({"steps": 1, "batch_size": 0}, r"`batch_size` must be more than 0; got 0"),
        ({"steps": 1, "lr": float("nan")}, r"`lr` must be more than 0; got nan"),
        ({"steps": 1, "clip": 0.0}, r"`clip` must be more than 0; got 0\.0"),
        ({"steps": 1, "ema": 1.0}, r"`ema` must be at least 0 and less than 1; got 1\.0"),
        ({"steps": 1, "warmup": -0.1}, r"`warmup` must be at least 0 and less than 1; got -0\.1"),
    ],
)
def test_settings_out_of_range(dataset: SegmentDataset, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(fresh(), dataset, tmp_path / "m.safetensors", **settings)


def test_dataset_must_fit_the_model(speech: Path, tmp_path: Path) -> None:
    other = SegmentDataset([speech], segment=2048, mel=MelSpectrogram(16000))
    with pytest.raises(TrainingError, match=r"the model works at 22050 Hz, the dataset at 16000 Hz"):
        train(fresh(), other, tmp_path / "m.safetensors", steps=1)
    other = SegmentDataset([speech], segment=2048, mel=MelSpectrogram(hop_length=128))
    with pytest.raises(TrainingError, match=r"the model's hop is 256 samples, the dataset's 128"):
        train(fresh(), other, tmp_path / "m.safetensors", steps=1)


def test_output_must_be_new_or_meant(dataset: SegmentDataset, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    with pytest.raises(TrainingError, match=r"`output` must end in \.safetensors; got .*m\.pt"):
        train(fresh(), dataset, tmp_path / "m.pt", steps=1)
    with pytest.raises(TrainingError, match=r"the directory .*nowhere does not exist"):
        train(fresh(), dataset, tmp_path / "nowhere" / "m.safetensors", steps=1)
    with pytest.raises(TrainingError, match=r"nothing to resume: .*m\.state\.pt does not exist"):
        train(fresh(), dataset, output, steps=1, resume=True)
    output.write_bytes(b"precious")
    with pytest.raises(TrainingError, match=r"m\.safetensors exists; resume=True .* overwrite=True"):
        train(fresh(), dataset, output, steps=1)
    assert output.read_bytes() == b"precious"
    train(fresh(), dataset, output, steps=1, batch_size=2, overwrite=True)
    fastflow.load(str(output))


def test_a_link_to_nothing_is_an_output_that_exists(dataset: SegmentDataset, tmp_path: Path) -> None:
    (tmp_path / "m.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(TrainingError, match=r"m\.json exists; resume=True .* overwrite=True"):
        train(fresh(), dataset, tmp_path / "m.safetensors", steps=1)


def test_states_that_cannot_be_resumed(dataset: SegmentDataset, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    train(fresh(), dataset, output, steps=1, batch_size=2)
    other = WaveGlow(**{**CONFIG, "n_flows": 3})
    with pytest.raises(TrainingError, match=r"cannot resume from .*'n_flows': 2.*; got .*'n_flows': 3"):
        train(other, dataset, output, steps=2, resume=True)
    (tmp_path / "m.state.pt").write_bytes(b"not a state")
    with pytest.raises(TrainingError, match=r"cannot resume from .*m\.state\.pt"):
        train(fresh(), dataset, output, steps=2, resume=True)


@pytest.mark.parametrize("damage", ["no average", "unknown progress", "misshapen weight"])
def test_damaged_states_are_refused_in_one_line(dataset: SegmentDataset, tmp_path: Path, damage: str) -> None:
    output = tmp_path / "m.safetensors"
    train(fresh(), dataset, output, steps=1, batch_size=2)
    state = torch.load(tmp_path / "m.state.pt", weights_only=True)
    if damage == "no average":
        del state["average"]
    elif damage == "unknown progress":
        state["progress"]["colour"] = 3
    else:
        state["model"]["upsample.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "m.state.pt")
    with pytest.raises(TrainingError, match=r"^cannot resume from .*: it is damaged or no state of .* \(\w+\)$"):
        train(fresh(), dataset, output, steps=2, resume=True)


def test_other_settings_on_resume_are_said(
    dataset: SegmentDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "m.safetensors"
    train(fresh(), dataset, output, steps=1, batch_size=2, lr=1e-3)
    with caplog.at_level("WARNING", logger="fastflow"):
        train(fresh(), dataset, output, steps=2, batch_size=2, lr=1e-3, resume=True)
        assert not caplog.records
        train(fresh(), dataset, output, steps=3, batch_size=3, lr=2e-3, resume=True)
    (record,) = caplog.records
    assert record.getMessage().endswith("had other settings: batch_size 2 is now 3, lr 0.001 is now 0.002")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . file write failed\nframes"),
            r"\[enforce fail[^\n]*$",
        ),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_a_full_disk_is_named_and_leaves_the_weights(
    dataset: SegmentDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def full(_state: object, path: Path) -> None:
        path.write_bytes(b"half a st")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=rf"^cannot write .*m\.state\.pt: {reason}"):
        train(fresh(), dataset, tmp_path / "m.safetensors", steps=1, batch_size=2)
    assert [path.name for path in tmp_path.glob("*m.*")] == ["m.safetensors"]
    fastflow.load(tmp_path / "m.safetensors")
