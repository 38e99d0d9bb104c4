"""scripts/model_card.py: what its columns measure, in one process and in two."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import fastflow
import fastflow.train.objective
from fastflow.models import WaveGlow
from fastflow.train import SegmentDataset

Run = Callable[..., object]
MakeWav = Callable[..., Path]
SCRIPTS = Path(fastflow.__file__).parents[1] / "scripts"
KEYS = ("log_mel_distance", "mel_cepstral_distortion", "stoi", "pesq", "f0_rmse_cents", "voicing_error")
TINY = {"n_flows": 2, "n_group": 8, "n_early_size": 2, "WN_config": {"n_layers": 1, "n_channels": 8, "kernel_size": 3}}


@pytest.fixture
def model_card(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("model_card", SCRIPTS / "model_card.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clips(make_wav: MakeWav, tmp_path: Path) -> Path:
    for name, samples in (("a.wav", 22050), ("b.wav", 16000)):
        make_wav(tmp_path / "clips" / name, samples=samples)
    return tmp_path / "clips"


@pytest.fixture
def trained(run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor]]:
    """A model after one step of `fastflow train`, and the weights before it."""
    first: dict[str, Tensor] = {}
    start = fastflow.train.objective.start_from_data

    def recorded(model: WaveGlow, dataset: SegmentDataset) -> None:
        start(model, dataset)
        first.update({key: value.clone() for key, value in model.state_dict().items()})

    monkeypatch.setattr(fastflow.train.objective, "start_from_data", recorded)
    path = tmp_path / "tiny.safetensors"
    options = [
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--segment",
        "2048",
        "--seed",
        "5",
        "--config",
        json.dumps({"model": TINY}),
    ]
    run("train", str(clips), "-o", str(path), *options)
    assert first
    return path, first


def test_before_training_is_where_training_began(
    model_card: ModuleType, trained: tuple[Path, dict[str, Tensor]], clips: Path
) -> None:
    path, first = trained
    facts = json.loads(path.with_suffix(".json").read_text())
    torch.manual_seed(1)
    state = model_card.before_training(facts, [str(clips)]).state_dict()
    assert state.keys() == first.keys()
    assert all(torch.equal(state[key], first[key]) for key in first)
    with pytest.raises(ValueError, match=r"--train-data gives 1 files of .*; the training had 2 of "):
        model_card.before_training(facts, [str(clips / "a.wav")])


def test_the_card_says_what_its_last_column_is(
    model_card: ModuleType,
    trained: tuple[Path, dict[str, Tensor]],
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(trained[0]), "--set", f"tones={clips}", "--card"]
    with_data = ["--train-data", str(clips)]
    cards = {}
    for name, extra in (("random", []), ("before", with_data)):
        card = tmp_path / f"{name}.md"
        monkeypatch.setattr(sys, "argv", ["model_card.py", *arguments, str(card), *extra])
        model_card.main()
        cards[name] = card.read_text()
    columns = "| mean of 2 clips | model | model, refined | Griffin-Lim | noise, refined |"
    assert f"{columns} untrained model | better |" in cards["random"]
    assert "with random weights (seed 0), not those that training began with." in cards["random"]
    assert f"{columns} before training | better |" in cards["before"]
    assert "the weights that training began with, made from its data (seed 5)." in cards["before"]
    assert "random" not in cards["before"] and "untrained" not in cards["before"]

    two = tmp_path / "two.md"
    command = [sys.executable, str(SCRIPTS / "model_card.py"), *arguments, str(two), *with_data, "--jobs", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert two.read_text() == cards["before"]


def test_a_model_trained_in_stages(
    model_card: ModuleType,
    trained: tuple[Path, dict[str, Tensor]],
    run: Run,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, card = tmp_path / "second.safetensors", tmp_path / "card.md"
    run("train", str(clips), "-o", str(path), "--from-checkpoint", str(trained[0]), "--steps", "2", "--batch-size", "3",
        "--segment", "2048", "--seed", "6")  # fmt: skip
    arguments = [str(path), "--set", f"tones={clips}", "--train-data", str(clips), "--card", str(card)]
    earlier = ["--earlier", str(trained[0].with_suffix(".json"))]
    monkeypatch.setattr(sys, "argv", ["model_card.py", *arguments, *earlier])
    monkeypatch.setattr(
        model_card, "measure_sets", lambda *_: {"tones": ({"before training": dict.fromkeys(KEYS, 0.0)}, 2)}
    )
    model_card.main()
    lines = [line for line in card.read_text().splitlines() if " steps of " in line]
    assert [line.split(",")[0].split(" segments")[0] for line in lines] == ["- 1 steps of 1", "- 2 steps of 3"]
    assert "seed 5: " in lines[0] and "seed 6: " in lines[1]
    assert "the weights that training began with, made from its data (seed 5)." in card.read_text()


def test_jobs_must_be_some(
    model_card: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["model_card.py", "m.safetensors", "--set", "a=b", "--jobs", "0"])
    with pytest.raises(SystemExit):
        model_card.main()
    assert "--jobs must be at least 1; got 0" in capsys.readouterr().err
