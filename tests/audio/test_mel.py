"""The mel front end against librosa, and what it refuses."""

from __future__ import annotations

import copy
import math

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from fastflow.audio import AudioError, FloWaveNetMel, MelSpectrogram, front_end
from fastflow.models import FloWaveNet, WaveGlow

RATE = 22050


def librosa_log_mel(audio: Tensor) -> Tensor:
    mel = librosa.feature.melspectrogram(
        y=audio.numpy(),
        sr=RATE,
        n_fft=1024,
        hop_length=256,
        win_length=1024,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=1.0,
        n_mels=80,
        fmin=0.0,
        fmax=8000.0,
        htk=False,
        norm="slaney",
    )
    return torch.from_numpy(np.log(np.maximum(mel, 1e-5)))


def signals(voice: Tensor) -> dict[str, Tensor]:
    time = torch.arange(RATE, dtype=torch.float64) / RATE
    generator = torch.Generator().manual_seed(0)
    click = torch.zeros(RATE)
    click[5000] = 1
    return {
        "voice": voice,
        "noise": 0.3 * torch.randn(RATE, generator=generator),
        # Loud tones beside empty bands are what float32 transforms get wrong.
        "tone": torch.sin(2 * torch.pi * 440 * time).float(),
        "chirp": torch.sin(2 * torch.pi * (50 * time + 4000 * time**2)).float(),
        "click": click,
        "silence": torch.zeros(RATE),
        "constant": torch.ones(RATE),
        "faint": 1e-6 * voice,
        "loud": 1e4 * voice,
    }


@pytest.mark.parametrize("name", ["voice", "noise", "tone", "chirp", "click", "silence", "constant", "faint", "loud"])
def test_equal_to_librosa_in_float32(voice, name):
    audio = signals(voice)[name]
    mel = MelSpectrogram()(audio)
    assert mel.dtype == torch.float32
    torch.testing.assert_close(mel[0], librosa_log_mel(audio), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:n_fft=1024 is too large")
@pytest.mark.parametrize("length", [513, 514, 767, 768, 769, 1023, 1024, 1025, 1279, 1280, 2048, 5001])
def test_equal_to_librosa_at_awkward_lengths(voice, length):
    audio = voice[3000 : 3000 + length]
    mel = MelSpectrogram()(audio)
    assert mel.shape == (1, 80, length // 256 + 1)
    torch.testing.assert_close(mel[0], librosa_log_mel(audio), rtol=0, atol=1e-4)


def test_float64_keeps_its_precision(voice):
    audio = voice.double()
    mel = MelSpectrogram()(audio)
    assert mel.dtype == torch.float64
    # librosa's filters are float32: what remains is their rounding.
    torch.testing.assert_close(mel[0], librosa_log_mel(audio), rtol=0, atol=1e-6)


def test_batches_equal_their_rows(voice):
    batch = torch.stack([voice, voice.flip(0), torch.zeros_like(voice)])
    module = MelSpectrogram()
    mel = module(batch)
    assert mel.shape == (3, 80, len(voice) // 256 + 1)
    for row, audio in zip(mel, batch, strict=True):
        torch.testing.assert_close(row, module(audio)[0], rtol=0, atol=1e-6)
    assert torch.equal(mel[2], torch.full_like(mel[2], math.log(1e-5)))


def test_strided_audio(voice):
    stereo = torch.stack([voice, -voice], dim=1)
    assert torch.equal(MelSpectrogram()(stereo[:, 0]), MelSpectrogram()(voice))


def test_module_casts_do_not_round_the_filters(voice):
    """A front end inside a half-precision model gives the same numbers, and follows it to other devices."""
    expected = MelSpectrogram()(voice)
    for module in (
        MelSpectrogram().half(),
        MelSpectrogram().float(),
        copy.deepcopy(MelSpectrogram().bfloat16()),
    ):
        assert torch.equal(module(voice), expected)
    moved = MelSpectrogram().to("meta")
    assert moved.basis.is_meta
    assert moved.window.is_meta


def test_half_precision_audio_gives_half_precision_mels(voice):
    audio = voice.half()
    mel = MelSpectrogram()(audio)
    assert mel.dtype == torch.float16
    torch.testing.assert_close(mel.float(), MelSpectrogram()(audio.float()), rtol=2**-11, atol=0)


def test_nothing_enters_the_state_dict():
    assert MelSpectrogram().state_dict() == {}


def test_other_settings(voice):
    module = MelSpectrogram(RATE, n_fft=512, hop_length=100, win_length=400, n_mels=40, f_min=80.0, f_max=7600.0)
    mel = librosa.feature.melspectrogram(
        y=voice.numpy(), sr=RATE, n_fft=512, hop_length=100, win_length=400, pad_mode="reflect", power=1.0,
        n_mels=40, fmin=80.0, fmax=7600.0,
    )  # fmt: skip
    expected = torch.from_numpy(np.log(np.maximum(mel, 1e-5)))
    torch.testing.assert_close(module(voice)[0], expected, rtol=0, atol=1e-4)


def test_gradients_reach_the_audio():
    audio = torch.randn(700, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module = MelSpectrogram(n_mels=10, n_fft=256, hop_length=200, win_length=256)
    assert torch.autograd.gradcheck(module, (audio,), fast_mode=True)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(512), r"`audio` must have at least 513 samples \(n_fft / 2 \+ 1\); got 512"),
        (torch.zeros(0), r"`audio` must have at least 513 samples \(n_fft / 2 \+ 1\); got 0"),
        (torch.zeros(1, 1, 1000), r"`audio` must be \[T\] or \[B, T\] with B at least 1; got \[1, 1, 1000\]"),
        (torch.zeros(()), r"`audio` must be \[T\] or \[B, T\] with B at least 1; got \[\]"),
        (torch.zeros(0, 1000), r"`audio` must be \[T\] or \[B, T\] with B at least 1; got \[0, 1000\]"),
        (torch.zeros(1000, dtype=torch.int16), "`audio` must be floating point; got torch.int16"),
        (np.zeros(1000), "`audio` must be a tensor; got ndarray"),
    ],
)
def test_refused_audio(audio, message):
    with pytest.raises(AudioError, match=f"^{message}$"):
        MelSpectrogram()(audio)


def test_audio_that_is_not_finite():
    audio = torch.zeros(2, 1000)
    audio[1, 17] = torch.nan
    audio[1, 900:903] = torch.inf
    with pytest.raises(
        AudioError, match=r"^`audio` must be finite; 4 of 2000 values are not, the first at index \[1, 17\]$"
    ):
        MelSpectrogram()(audio)


def test_audio_on_another_device():
    with pytest.raises(AudioError, match=r"^`audio` must be on the module's device meta; got cpu$"):
        MelSpectrogram().to("meta")(torch.zeros(1000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"win_length": 2048}, r"`win_length` must be in 1\.\.n_fft = 1024; got 2048"),
        ({"win_length": 0}, r"`win_length` must be in 1\.\.n_fft = 1024; got 0"),
        ({"hop_length": 0}, r"`hop_length` must be at least 1; got 0"),
        (
            {"sampling_rate": 8000},
            r"`f_min` and `f_max` must satisfy 0 <= f_min < f_max <= 4000\.0 Hz; got 0\.0 and 8000\.0",
        ),
        ({"f_min": 9000.0}, r"`f_min` and `f_max` must satisfy .*; got 9000\.0 and 8000\.0"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(AudioError, match=f"^{message}$"):
        MelSpectrogram(**settings)


def published_flowavenet_mel(audio: Tensor) -> Tensor:
    """ksw0306/FloWaveNet's formulas, with librosa's power mel padded as librosa did at the time."""
    wav = audio.numpy() / np.abs(audio.numpy()).max() * 0.999
    mel = librosa.feature.melspectrogram(
        y=wav, sr=RATE, n_fft=1024, hop_length=256, n_mels=80, fmin=125, fmax=7600, pad_mode="reflect"
    )
    return torch.from_numpy(np.clip((20 * np.log10(np.maximum(1e-4, mel)) - 20 + 100) / 100, 0, 1))


@pytest.mark.parametrize("name", ["voice", "noise", "tone", "chirp", "click", "constant", "faint", "loud"])
def test_flowavenets_mel_is_the_published_one(voice, name):
    audio = signals(voice)[name]
    mel = FloWaveNetMel()(audio)
    assert mel.dtype == torch.float32 and 0 <= mel.min() <= mel.max() <= 1
    torch.testing.assert_close(mel[0], published_flowavenet_mel(audio), rtol=0, atol=1e-4)


def test_flowavenets_mel_levels_each_item_and_leaves_silence(voice):
    batch = torch.stack([voice[:5000], 0.01 * voice[:5000], torch.zeros(5000)])
    mel = FloWaveNetMel()(batch)
    torch.testing.assert_close(mel[0], mel[1])
    assert not mel[2].any()
    with pytest.raises(AudioError, match="`audio` must be finite"):
        FloWaveNetMel()(torch.full((5000,), math.nan))


@pytest.mark.parametrize("samples", [513, 1023, 1024, 1025, 22050])
def test_what_comes_before_the_audio_is_half_of_the_padding_to_whole_frames(samples):
    lead = FloWaveNetMel().lead(samples)
    length = (samples // 256 + 1) * 256
    assert lead == (length - samples) // 2
    assert lead + samples <= length
    assert MelSpectrogram().lead(samples) == 0


def test_front_ends_follow_the_model():
    with torch.device("meta"):
        flow = FloWaveNet(1, 20, 1, 1, 1, filter_size=2)
        glow = WaveGlow(
            40, 1, 8, 4, 2, {"n_layers": 1, "n_channels": 2, "kernel_size": 3}, hop_length=128, win_length=512
        )
    assert type(front_end(flow)) is FloWaveNetMel and front_end(flow).n_mels == 20
    made = front_end(glow)
    assert type(made) is MelSpectrogram and (made.n_mels, made.hop_length) == (40, 128)
