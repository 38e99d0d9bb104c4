"""The model that comes with the package: small, loadable by name, and intelligible."""

from __future__ import annotations

from pathlib import Path

import torch

import fastflow
from fastflow.audio import MelConsistency, MelSpectrogram, griffin_lim, read_audio
from fastflow.audio.metrics import mel_cepstral_distortion, pesq, stoi

ASSETS = Path(fastflow.__file__).parent / "assets"


def test_bundled_model_is_small_and_has_its_card() -> None:
    assert (ASSETS / "waveglow-small.safetensors").stat().st_size <= 12_000_000
    assert "STOI" in (ASSETS / "waveglow-small.md").read_text(encoding="utf-8")


def test_bundled_model_speaks() -> None:
    """The demo clip's voice and sentence were not in the training data."""
    model = fastflow.load("waveglow-small")
    speech = read_audio(ASSETS / "demo.flac")
    audio = model.infer(MelSpectrogram()(speech), sigma=0.6, generator=torch.Generator().manual_seed(0))
    assert stoi(speech, audio[0, : len(speech)], model.sampling_rate) >= 0.75


def test_refined_it_is_better_than_griffin_lim() -> None:
    """In the figures that its card is about, on the clip of the demo; the card has all clips."""
    model, speech = fastflow.load("waveglow-small"), read_audio(ASSETS / "demo.flac")
    mel = MelSpectrogram()(speech)
    audio = model.infer(mel, sigma=0.6, generator=torch.Generator().manual_seed(0))[:, : len(speech)]
    refined, baseline = MelConsistency()(audio, mel)[0], griffin_lim(mel[0])
    for measure, better in ((stoi, 1), (pesq, 1), (mel_cepstral_distortion, -1)):
        ours, theirs = (measure(speech, made, 22050) for made in (refined, baseline))
        assert better * (ours - theirs) > 0, measure.__name__
