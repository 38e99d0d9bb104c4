"""scripts/demo.py: what it prints and writes, and how it refuses."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch

import fastflow
from fastflow.checkpoints import save
from fastflow.models import WaveGlow

MakeWav = Callable[..., Path]
SCRIPT = Path(fastflow.__file__).parents[1] / "scripts" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prints_figures_of_all_and_writes_four_files(
    demo: ModuleType,
    make_wav: MakeWav,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = make_wav(tmp_path / "clip.wav", samples=22050)
    arguments = ["--in", str(clip), "--model", str(checkpoint), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    demo.main()
    printed = capsys.readouterr().out
    for label in ("log-mel distance", "mel-cepstral distortion", "STOI", "PESQ", "F0 error", "voicing error"):
        (line,) = (line for line in printed.splitlines() if line.startswith(label))
        assert len(line.split()) >= 5
    assert next(line.split()[2:] for line in printed.splitlines() if line.split()[:2] == ["unit", "better"]) == [
        "model",
        "refined",
        "Griffin-Lim",
    ]
    assert "real-time factor" in printed
    for name in ("output.wav", "unrefined.wav", "griffin_lim.wav", "comparison.png"):
        assert f"wrote    {tmp_path / 'out' / name}" in printed
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert soundfile.info(tmp_path / "out" / "output.wav").frames == 22050
    assert (tmp_path / "out" / "output.wav").read_bytes() != (tmp_path / "out" / "unrefined.wav").read_bytes()
    demo.main()  # a second run replaces the files


@pytest.mark.parametrize("content", [None, b"", b"not audio"])
def test_a_bad_clip_is_named_with_its_reason(
    demo: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    clip = tmp_path / "clip.wav"
    if content is not None:
        clip.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--in", str(clip), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(fastflow, "load", lambda _: pytest.fail("loaded the model before looking at the clip"))
    with pytest.raises(SystemExit, match=rf"^demo: cannot read {clip}: "):
        demo.main()
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_mels_is_one_line(
    demo: ModuleType, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wn = {"n_layers": 1, "n_channels": 4, "kernel_size": 3}
    save(WaveGlow(40, 2, 8, 4, 2, wn), tmp_path / "model.safetensors")
    arguments = ["--in", str(make_wav(tmp_path / "a.wav")), "--model", str(tmp_path / "model.safetensors")]
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^demo: .*model.safetensors: `mel` must be \[B, 40, T\]; got .*$"):
        demo.main()
    assert not (tmp_path / "out").exists()


def test_figures_that_are_not_defined_name_their_column(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    noise, silence = torch.randn(22050, generator=torch.Generator().manual_seed(0)), torch.zeros(22050)
    demo.evaluate_all(noise, {"good": noise, "mute": silence}, 22050)
    lines = capsys.readouterr().err.splitlines()
    assert "mute: PESQ is not defined here: a signal is silent" in lines
    assert not any(line.startswith("good: PESQ") for line in lines)


def test_the_clip_that_ships(demo: ModuleType) -> None:
    info = soundfile.info(demo.CLIP)
    assert (info.samplerate, info.channels, info.format) == (22050, 1, "FLAC")
    assert 3.0 < info.duration < 8.0
    assert demo.CLIP.stat().st_size < 200_000
