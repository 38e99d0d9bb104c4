"""MelConsistency: against its formulas in numpy, that it reaches a mel, and what it refuses."""

from __future__ import annotations

import math

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from fastflow.audio import AudioError, FloWaveNetMel, MelConsistency, MelSpectrogram
from fastflow.audio.metrics import griffin_lim, log_mel_distance


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_the_formulas(audio: np.ndarray, mel: np.ndarray, iterations: int, momentum: float) -> np.ndarray:
    """librosa's transforms, float64, a bin at a time."""
    basis = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000, dtype=np.float64)
    frames = len(audio) // 256 + 1
    mel = np.concatenate([mel, np.repeat(mel[:, -1:], frames - mel.shape[1], axis=1)], axis=1)
    last = None
    for _ in range(iterations):
        spectrum = librosa.stft(audio, n_fft=1024, hop_length=256, pad_mode="reflect")
        ahead = spectrum if last is None else spectrum + momentum * (spectrum - last)
        last = spectrum
        ratio = mel - np.log(np.maximum(basis @ np.abs(ahead), 1e-5))
        scaled = ahead.copy()
        for k in range(513):
            if basis[:, k].any():
                scaled[k] *= np.exp(basis[:, k] @ ratio / basis[:, k].sum())
        audio = librosa.istft(scaled, n_fft=1024, hop_length=256, length=len(audio))
    return audio


@pytest.mark.parametrize("momentum", [0.0, 0.99])
@pytest.mark.parametrize("samples", [5120, 5121, 5375])
@pytest.mark.parametrize("missing", [0, 1])
def test_equal_to_the_formulas(voice: Tensor, momentum: float, samples: int, missing: int) -> None:
    audio, speech = noise(2, samples), torch.stack([voice[6000 : 6000 + samples], voice[9000 : 9000 + samples]])
    mel = MelSpectrogram()(speech)
    mel = mel[:, :, : mel.shape[2] - missing]
    refined = MelConsistency(momentum=momentum)(audio, mel, 4)
    assert refined.dtype == torch.float32 and refined.shape == audio.shape
    for got, start, target in zip(refined, audio, mel, strict=True):
        wanted = by_the_formulas(start.double().numpy(), target.double().numpy(), 4, momentum)
        assert np.abs(got.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_each_of_more_iterations_brings_noise_nearer_to_a_mel(voice: Tensor) -> None:
    mel, consistency = MelSpectrogram()(voice), MelConsistency()
    distances = [
        log_mel_distance(voice, consistency(noise(1, len(voice)), mel, iterations)[0], 22050)
        for iterations in (0, 1, 3, 10, 30)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < log_mel_distance(voice, griffin_lim(mel[0]), 22050) < distances[0]


def test_audio_that_has_the_mel_stays(voice: Tensor) -> None:
    refined = MelConsistency()(voice, MelSpectrogram()(voice), 10)
    assert refined.shape == voice.shape
    torch.testing.assert_close(refined, voice, rtol=0, atol=2e-5)


def test_no_iterations_and_silence_and_the_shortest() -> None:
    consistency, front_end = MelConsistency(), MelSpectrogram()
    audio = noise(513)
    mel = front_end(noise(513, seed=1))
    assert torch.equal(consistency(audio, mel, 0), audio)
    assert not torch.equal(consistency(audio, mel, 1), audio)
    assert not consistency(torch.zeros(513), mel).any()  # there is nothing to scale
    for samples in (0, 1, 512):  # which no reflection continues
        assert torch.equal(consistency(audio[:samples], mel[:, :, : samples // 256 + 1]), audio[:samples])
    assert consistency(torch.zeros(1, 0), torch.zeros(1, 80, 0)).shape == (1, 0)


def test_other_front_ends(voice: Tensor) -> None:
    for front_end in (FloWaveNetMel(), MelSpectrogram(n_fft=2048, hop_length=300, win_length=1200, n_mels=60)):
        target = front_end.levelled(voice[None])
        mel = front_end.frames(target)
        distances = []
        for iterations in (0, 10, 30):
            refined = MelConsistency(front_end)(noise(1, len(voice)), mel.float(), iterations)
            distances.append(float((front_end.frames(refined) - mel).square().mean().sqrt()) * front_end.nepers)
        assert distances[2] < distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("front_end", [MelSpectrogram(), FloWaveNetMel()])
def test_one_iteration_mends_a_level(front_end: MelSpectrogram) -> None:
    """Were a unit of the mel worth more or less than `nepers` says, it would overshoot or fall short."""
    wanted = noise(1, 8192)
    mel = front_end.frames(wanted)
    if isinstance(front_end, FloWaveNetMel):
        assert 0 < mel.min() <= mel.max() < 1  # nothing is clipped
    refined = MelConsistency(front_end)(0.5 * wanted, mel.float(), 1)
    off = front_end.frames(refined)[:, 4:-4] - mel[:, 4:-4]  # bins below and above all bands keep half of their level
    assert float(off.abs().max()) * front_end.nepers < 0.01 < math.log(2)


def test_double_precision_and_gradients_come_out_as_float32(voice: Tensor) -> None:
    mel = MelSpectrogram()(voice.double())
    refined = MelConsistency()(voice.double().requires_grad_(), mel, 1)
    assert refined.dtype == torch.float32 and not refined.requires_grad
    assert not MelConsistency().state_dict()


@pytest.mark.parametrize(
    ("audio", "mel", "iterations", "message"),
    [
        (noise(2, 2560), torch.zeros(1, 80, 11), 1, r"`mel` must be \[2, 80, 11 or 10\] for 2560 samples of `audio`"),
        (noise(2560), torch.zeros(1, 40, 11), 1, r"`mel` must be .*; got \[1, 40, 11\]"),
        (noise(2560), torch.zeros(80, 11), 1, r"`mel` must be .*; got \[80, 11\]"),
        (noise(2560), torch.zeros(1, 80, 12), 1, r"got \[1, 80, 12\]"),
        (noise(2560), torch.zeros(1, 80, 9), 1, r"got \[1, 80, 9\]"),
        (noise(2560), torch.zeros(1, 80, 11).long(), 1, "`mel` must be a floating-point tensor; got torch.int64"),
        (noise(2560), None, 1, "`mel` must be a floating-point tensor; got NoneType"),
        (noise(2560), torch.full((1, 80, 11), math.nan), 1, "`mel` must be finite"),
        (noise(2560).fill_(math.inf), torch.zeros(1, 80, 11), 1, "`audio` must be finite"),
        (noise(2560), torch.zeros(1, 80, 11, device="meta"), 1, "`mel` must be on the module's device cpu; got meta"),
        (noise(2560), torch.full((1, 80, 11), 61.0), 1, r"`mel` must be ln\(mel magnitude\), at most 60; got up to 61"),
        (noise(2560), torch.zeros(1, 80, 11), -1, "`iterations` must be at least 0; got -1"),
    ],
)
def test_refuses(audio: Tensor, mel: Tensor, iterations: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        MelConsistency()(audio, mel, iterations)


def test_a_converted_module_and_the_highest_mel(voice: Tensor) -> None:
    mel = MelSpectrogram()(voice)
    wanted = MelConsistency()(noise(len(voice)), mel, 3)
    for converted in (MelConsistency().half(), MelConsistency().double()):
        refined = converted(noise(len(voice)), mel, 3)
        assert refined.dtype == torch.float32
        torch.testing.assert_close(refined, wanted, rtol=0, atol=2e-3)
    assert MelConsistency()(noise(1, 5120), torch.full((1, 80, 20), 60.0)).isfinite().all()


def test_refuses_frames_that_do_not_overlap_enough() -> None:
    with pytest.raises(AudioError, match=r"a hop of at most half its window.*; got hop_length 256 and win_length 400"):
        MelConsistency(MelSpectrogram(win_length=400))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_refuses_a_momentum_that_does_not_converge(momentum: float) -> None:
    with pytest.raises(AudioError, match="`momentum` must be at least 0 and less than 1"):
        MelConsistency(momentum=momentum)
