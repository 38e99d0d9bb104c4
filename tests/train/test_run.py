"""What surrounds the loop: models, several processes, crashes, validation, earlier saves, TensorBoard."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import fastflow
from fastflow.audio import MelSpectrogram, front_end, read_audio, write_audio
from fastflow.cli.main import main
from fastflow.models import FloWaveNet, SqueezeWave, Vocoder
from fastflow.train import DataError, SegmentDataset, TrainingError, train
from fastflow.train.objective import VocoderObjective
from fastflow.train.state import state_path
from fastflow.train.world import World

from .test_loop import Disturbed, disturbed, fresh, same

__all__ = ["disturbed"]

MODEL = {"n_flows": 2, "n_group": 8, "WN_config": {"n_layers": 1, "n_channels": 8}}
COMMAND = ["--segment", "2048", "--batch-size", "4", "--config", json.dumps({"model": MODEL, "save_every": 1e-4})]


def flowavenet() -> FloWaveNet:
    torch.manual_seed(0)
    return FloWaveNet(1, 80, 2, 2, 1, block_per_split=1, filter_size=8)


def squeezewave() -> SqueezeWave:
    torch.manual_seed(0)
    wn = {"n_layers": 1, "n_channels": 8, "kernel_size": 3}
    return SqueezeWave(80, 2, 128, 2, 16, wn)


@pytest.mark.parametrize("make", [flowavenet, squeezewave])
def test_other_models_learn_and_resume(make: Any, speech: Path, tmp_path: Path) -> None:
    dataset = Disturbed([speech], segment=2048, seed=3, mel=front_end(make()))
    settings: dict[str, Any] = {"steps": 20, "batch_size": 2, "lr": 1e-2}
    whole = make()
    facts = train(whole, dataset, tmp_path / "a.safetensors", **settings)
    with torch.no_grad():
        learned, random = (VocoderObjective(m, 1.0)(*dataset.batch(99, 8)) for m in (whole, _started(make(), dataset)))
    assert learned < random
    assert facts["progress"]["skipped_steps"] == 0
    assert same(fastflow.load(tmp_path / "a.safetensors"), whole)  # type: ignore[arg-type]

    dataset.at, dataset.signal = 2, signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        train(make(), dataset, tmp_path / "b.safetensors", keep=1, **settings)
    assert (tmp_path / "b.step3.safetensors").exists()
    dataset.signal = None
    resumed = make()
    train(resumed, dataset, tmp_path / "b.safetensors", **settings, resume=True)
    assert same(resumed, whole)


def _started(model: Vocoder, dataset: SegmentDataset) -> Vocoder:
    """With actnorm set from data, as training begins."""
    VocoderObjective(model, 1.0)(*dataset.batch(0, 2))
    return model.eval()


def test_the_mel_is_that_of_the_whole_file(speech: Path) -> None:
    path = speech / "low.flac"
    for mel in (MelSpectrogram(), front_end(flowavenet())):
        data = SegmentDataset([path], segment=2048, dither=0.0, mel=mel)
        source = read_audio(path)
        whole = mel(source)[0]
        for frame in (0, 1, 5, (len(source) - 2048) // 256):
            part, audio = data._cut(0, frame)
            torch.testing.assert_close(part, whole[:, frame : frame + 9], rtol=1e-5, atol=1e-5)
            lead = mel.lead(len(source))
            peak = float((mel.levelled(source[None].double())[0] / source).nanmedian())
            begin = frame * 256 - lead
            torch.testing.assert_close(audio[max(0, -begin) :], peak * source[max(0, begin) : begin + 2048])


def test_a_share_is_every_nth_segment(dataset: SegmentDataset) -> None:
    whole = dataset.batch(5, 6)
    for rank in range(3):
        for part, all_of_it in zip(dataset.batch(5, 6, (rank, 3)), whole, strict=True):
            assert part.equal(all_of_it[rank::3])


def test_workers_make_the_same_batches(dataset: SegmentDataset, tmp_path: Path) -> None:
    models = [fresh(), fresh()]
    for i, model in enumerate(models):
        train(model, dataset, tmp_path / f"{i}.safetensors", steps=3, batch_size=2, workers=i)
    assert same(*models)


def test_validation_and_the_last_saves_and_tensorboard(
    dataset: SegmentDataset, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = SegmentDataset([speech / "more"], segment=2048)
    output = tmp_path / "m.safetensors"
    options: dict[str, Any] = {"steps": 5, "batch_size": 2, "validation": held_out, "save_every": 1e-9}
    facts = train(fresh(), dataset, output, keep=2, tensorboard=tmp_path / "board", log_every=0.0, **options)
    with torch.no_grad():
        model = fastflow.load(output).train()
        losses = [VocoderObjective(model, 1.0)(*held_out.batch(n, 2)) for n in range(8)]
    assert facts["progress"]["validation_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert "validation loss" in capsys.readouterr().err
    names = sorted(p.name for p in tmp_path.glob("m.step*"))
    assert names == [f"m.step{n}{suffix}" for n in (4, 5) for suffix in (".safetensors", ".state.pt")]
    for suffix in (".safetensors", ".state.pt"):
        assert (tmp_path / f"m.step5{suffix}").read_bytes() == output.with_suffix(suffix).read_bytes()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"loss", "learning rate", "validation loss"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 5
    assert {"source/audio", "model/audio"} == {f"{n.split('/')[0]}/audio" for n in events.Tags()["audio"]}
    assert events.Tags()["images"] == ["source and model"]


def test_a_spike_is_skipped_and_ten_stop(disturbed: Disturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastflow.train.loop.SETTLED_STEPS", 3)
    monkeypatch.setattr(Disturbed, "batch", _loud_after(4))
    model = fresh()
    with pytest.raises(
        TrainingError, match=r"loss \d+\.\d+ and .* at step 13, the 10th bad one in a row, .* is a spike"
    ):
        train(model, disturbed, tmp_path / "m.safetensors", steps=40, batch_size=2, spike=3.0)
    assert all(p.isfinite().all() for p in model.parameters())


def _loud_after(step: int) -> Any:
    def batch(self: SegmentDataset, number: int, size: int, share: tuple[int, int] = (0, 1)) -> Any:
        mel, audio = SegmentDataset.batch(self, number, size, share)
        return mel, audio * (100 if number >= step else 1)

    return batch


def test_gone_back_to_an_earlier_save_the_later_ones_go(dataset: SegmentDataset, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    train(fresh(), dataset, output, steps=5, batch_size=2, save_every=1e-9, keep=3)
    (tmp_path / "m.step3.state.pt").replace(tmp_path / "m.state.pt")
    train(fresh(), dataset, output, steps=4, batch_size=2, keep=2, resume=True)
    assert sorted(p.name for p in tmp_path.glob("m.step*.safetensors")) == [
        "m.step3.safetensors",
        "m.step4.safetensors",
    ]


def test_other_data_are_noticed_and_moved_ones_are_the_same(
    speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "m.safetensors"

    def go_on(folder: Path, steps: int) -> list[str]:
        caplog.clear()
        data = SegmentDataset([folder], segment=2048)
        facts = train(fresh(), data, output, steps=steps, batch_size=2, resume=steps > 1)
        assert facts["progress"]["step"] == steps
        return [record.getMessage() for record in caplog.records]

    assert go_on(speech, 1) == []
    moved = speech.rename(tmp_path / "moved")
    assert go_on(moved, 2) == []
    (moved / "low.flac").rename(moved / "z.flac")
    (said,) = go_on(moved, 3)
    clips = r"data 2 clips of 33075 samples \(\w{12}\)"
    assert re.search(rf"other settings: {clips} is now {clips.removeprefix('data ')}$", said)
    write_audio(moved / "more.wav", torch.zeros(11000), 22050)
    (said,) = go_on(moved, 4)
    assert re.search(rf"other settings: {clips} is now 3 clips of 44075 samples", said)

    state = torch.load(state_path(output), weights_only=True)
    del state["settings"]["data"]  # as runs of earlier versions have left it
    torch.save(state, state_path(output))
    go_on(moved, 5)


def test_weights_that_are_worth_keeping_are_kept(dataset: SegmentDataset, tmp_path: Path) -> None:
    model = fresh()
    before = model.upsample.weight.detach().clone()
    train(model, dataset, tmp_path / "m.safetensors", steps=1, batch_size=2, lr=1e-9, from_data=False)
    torch.testing.assert_close(model.upsample.weight.detach(), before, atol=1e-6, rtol=0)


def test_another_precision_goes_on(dataset: SegmentDataset, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    train(fresh(), dataset, output, steps=1, batch_size=2)
    facts = train(fresh(), dataset, output, steps=2, batch_size=2, precision="float16", resume=True)
    assert facts["progress"]["step"] == 2


def test_precision_must_be_known(dataset: SegmentDataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"`precision` must be one of float32, bfloat16, float16; got 'int8'"):
        train(fresh(), dataset, tmp_path / "m.safetensors", steps=1, precision="int8")


def _run(
    arguments: list[str], processes: int = 1, *, common: list[str] = COMMAND, **options: Any
) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch += ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port), "-m"]
    command = [*launch, "fastflow", "train", *arguments, *common]
    return subprocess.Popen(command, env=_environment(), text=True, stderr=subprocess.PIPE, **options)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fastflow.__file__).parents[1])}


def _finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def test_where_writing_fails_all_processes_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def agree(_: World, stop: bool, seconds: float) -> tuple[bool, float]:
        told.append(stop)
        return True, seconds

    def fail() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(World, "agree", agree)
    with pytest.raises(OSError, match="no space left"):
        World(0, 2).write(fail)
    with pytest.raises(TrainingError, match="the first process could not write"):
        World(1, 2).write(fail)
    assert told == [True, False]


def test_two_processes_follow_one(speech: Path, tmp_path: Path) -> None:
    out = [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    arguments = [[str(speech), "-o", str(o), "--steps", "6", "--lr", "3e-3"] for o in out]
    result = CliRunner().invoke(main, ["train", *arguments[0], *COMMAND])
    assert result.exit_code == 0, result.output
    said = _finish(_run(arguments[1], 2))
    one, two = (json.loads(o.with_suffix(".json").read_text()) for o in out)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["progress"]["loss"] == pytest.approx(one["progress"]["loss"], rel=1e-4)
    assert two["progress"]["samples"] == one["progress"]["samples"]
    assert said.count("million parameters") == 1
    states = [fastflow.load(o).state_dict() for o in out]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)


def _whole_and_killed(source: Path, folder: Path, common: list[str] = COMMAND, seed: int = 0) -> tuple[Path, str]:
    """Train in one go, and with SIGKILLs at random moments, most of them while a file is written, and resumptions.

    What was written last before a kill is whole, and goes on to the same weights and the same state, and nothing else
    stays. Returns the weights' file and what was said.
    """
    whole, parts = folder / "whole.safetensors", folder / "parts.safetensors"
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(seed), str(whole), str(parts), str(source), "--steps", "16", *common]
    done = subprocess.run(command, env=_environment(), text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    assert len(steps) >= 2 and steps == sorted(steps)
    _assert_equal(load_file(parts), load_file(whole))
    assert not list(folder.glob(".fastflow-*"))
    states = [torch.load(state_path(path), weights_only=True) for path in (parts, whole)]
    for state in states:
        del state["progress"]["seconds"]
    _assert_equal(*states)
    return parts, done.stderr


def _assert_equal(one: Any, other: Any, where: str = "") -> None:
    """The same values of the same types, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key, value in one.items():
            _assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_equal(a, b, f"{where}.{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.equal(other), where
    else:
        assert one == other, where


def test_killed_and_resumed_is_uninterrupted(speech: Path, tmp_path: Path) -> None:
    weights, _ = _whole_and_killed(speech, tmp_path)
    assert fastflow.load(weights).config["n_flows"] == 2


def test_a_batch_that_the_processes_cannot_share(
    dataset: SegmentDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastflow.train.world.World.current", staticmethod(lambda _parallel: World(0, 2)))
    with pytest.raises(TrainingError, match=r"`batch_size` must be a multiple of the 2 processes; got 3"):
        train(fresh(), dataset, tmp_path / "m.safetensors", steps=1, batch_size=3)


def test_too_short_for_the_front_end(tmp_path: Path, speech: Path) -> None:
    write_audio(tmp_path / "short.wav", torch.zeros(400), 22050)
    with pytest.raises(DataError, match=r"400 samples, shorter than a segment of 513"):
        SegmentDataset([tmp_path / "short.wav"], segment=256)
