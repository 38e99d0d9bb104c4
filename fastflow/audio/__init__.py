"""Wav in and out, the mel front end, what is done to a vocoder's audio, metrics and the comparison picture."""

from __future__ import annotations

from fastflow.audio.consistency import MelConsistency
from fastflow.audio.denoiser import Denoiser
from fastflow.audio.errors import AudioError
from fastflow.audio.io import audio_length, read_audio, write_audio
from fastflow.audio.mel import FloWaveNetMel, MelSpectrogram, front_end
from fastflow.audio.metrics import evaluate, griffin_lim
from fastflow.audio.plot import plot_comparison, plot_mel_comparison

__all__ = [
    "AudioError",
    "Denoiser",
    "FloWaveNetMel",
    "MelConsistency",
    "MelSpectrogram",
    "audio_length",
    "evaluate",
    "front_end",
    "griffin_lim",
    "plot_comparison",
    "plot_mel_comparison",
    "read_audio",
    "write_audio",
]
