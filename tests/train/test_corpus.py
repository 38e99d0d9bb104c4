"""scripts/make_corpus.py; where espeak-ng is not installed, only what needs no speech."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastflow.audio import read_audio

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_corpus.py"


@pytest.fixture
def make_corpus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_corpus", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_text_has_enough_different_sentences(make_corpus: ModuleType) -> None:
    sentences = make_corpus.read_sentences(make_corpus.TEXT)
    assert len(sentences) >= 150
    assert len(set(sentences)) == len(sentences)


def test_voices_are_not_shared(make_corpus: ModuleType) -> None:
    assert not set(make_corpus.TRAIN_VARIANTS) & set(make_corpus.HELDOUT_VARIANTS)


def test_a_missing_espeak_is_said_plainly(
    make_corpus: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["make_corpus.py", str(tmp_path / "out")])
    assert make_corpus.main() == 1
    assert "error: espeak-ng is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_small_corpus_repeats_and_keeps_its_sets_apart(make_corpus: ModuleType, tmp_path: Path) -> None:
    facts = make_corpus.make_corpus(tmp_path / "a", minutes=0.2, heldout_minutes=0.1, seed=5)
    again = make_corpus.make_corpus(tmp_path / "b", minutes=0.2, heldout_minutes=0.1, seed=5)
    assert facts == again
    said = {name: {u["text"] for u in facts[name]["utterances"]} for name in ("train", "heldout")}
    assert not said["train"] & said["heldout"]
    for path in sorted((tmp_path / "a").rglob("*.flac")):
        audio = read_audio(path)
        assert (audio == read_audio(tmp_path / "b" / path.relative_to(tmp_path / "a"))).all()
        assert audio.abs().max() <= 0.96
        assert 0.05 < audio.square().mean().sqrt() < 0.15
