"""scripts/glow_digits.py: its data, its figures, its files."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastflow
from fastflow.models import Glow

SCRIPT = Path(fastflow.__file__).parents[1] / "scripts" / "glow_digits.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("glow_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "glow_digits", module)  # where its named tuple looks itself up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield module
    torch.set_num_threads(threads)


def test_digits_are_split_and_have_four_bits(script: ModuleType) -> None:
    torch.manual_seed(0)
    train, held_out = script.digits()
    assert (len(train), len(held_out)) == (1438, 359)
    assert train.shape[1:] == (1, 8, 8)
    assert train.dtype == torch.uint8
    assert int(train.min()) == 0 and int(train.max()) == 15


def test_histogram_of_even_values_costs_all_bits(script: ModuleType) -> None:
    images = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 1, 2, 2)
    assert script.histogram_bits(images, images) == pytest.approx(4)
    certain = torch.zeros(984, 1, 2, 2, dtype=torch.uint8)  # 985 of 1000 with the one that every value starts from
    assert script.histogram_bits(certain, certain) == pytest.approx(-math.log2(0.985))


def test_bits_of_held_out_digits_fall(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(script, "WARM_UP", 1)
    monkeypatch.setattr(script, "LEARNING_RATE", 5e-3)
    train, held_out = script.digits()
    model = Glow(1, n_levels=2, n_steps=2, hidden_channels=16)
    model.bits_per_dim(train[:256], script.N_BITS)
    before = script.measure(model, held_out)
    assert before == script.measure(model, held_out)
    curve = list(script.fit(model, train, held_out, 25, every=20))
    assert [measured.step for measured in curve] == [20, 25]
    assert curve[-1].held_out < curve[0].held_out < before - 0.2


def test_prints_its_figures_and_writes_picture_and_model(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for run in ("first", "second"):
        picture, model = tmp_path / run / "digits.png", tmp_path / f"{run}.safetensors"
        arguments = ["--steps", "1", "--out", str(picture), "--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["glow_digits.py", *arguments])
        script.main()
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size > 10_000
        assert Glow.load(model).z_shapes(8, 8) == [(2, 4, 4), (8, 2, 2)]
        printed = capsys.readouterr().out
        assert "uniform 4, each pixel's histogram 2." in printed
        lines.append(next(line for line in printed.splitlines() if line.startswith("step")).rsplit("   ", 1)[0])
    assert lines[0] == lines[1], "the seed decides everything but the time"


def test_tiles_are_rows_of_images(script: ModuleType) -> None:
    images = torch.arange(25).view(25, 1, 1, 1).expand(25, 1, 2, 3)
    picture = script.tiled(images)
    assert picture.shape == (2 * 3, script.COLUMNS * 4)  # the rest of the last row is left out
    assert picture[::3, ::4].flatten().tolist() == list(range(20))
    assert not picture[2::3].any() and not picture[:, 3::4].any()
