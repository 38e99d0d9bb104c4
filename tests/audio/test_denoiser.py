"""The denoiser against the published algorithm, restated in numpy, with a model whose hum is known."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastflow.audio import AudioError, Denoiser

HOP = 256


class HummingModel(nn.Module):
    """A vocoder that adds a hum to whatever its mel says; it says only its mel's mean."""

    def __init__(self, n_mel_channels: int = 80) -> None:
        super().__init__()
        self.n_mel_channels = n_mel_channels
        self.level = nn.Parameter(torch.tensor(0.05))
        self.calls: list[tuple[Tensor, float]] = []

    def infer(self, mel: Tensor, sigma: float = 1.0) -> Tensor:
        self.calls.append((mel, sigma))
        time = torch.arange(mel.shape[2] * HOP, device=mel.device, dtype=torch.float32)
        # Cosines, which reflection at their first sample continues: the first frame is like all others.
        hum = torch.cos(2 * torch.pi * 10.5 * time / 1024) + 0.3 * torch.cos(2 * torch.pi * 87.2 * time / 1024)
        return (self.level * hum).to(mel.dtype) + mel.mean(dim=(1, 2)).unsqueeze(1)


def published_stft(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """[n_fft / 2 + 1, F]: reflection padding, then each frame times window and cosines and sines."""
    padded = np.pad(audio, n_fft // 2, mode="reflect")
    place = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * place / n_fft)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), place) / n_fft) * window
    frames = np.stack([padded[at : at + n_fft] for at in range(0, len(padded) - n_fft + 1, hop)], axis=1)
    return basis @ frames


@functools.cache
def pseudo_inverse(n_fft: int) -> np.ndarray:
    angle = 2 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
    return np.linalg.pinv(np.concatenate([np.cos(angle), -np.sin(angle)]), rcond=1e-10)


def published_istft(spectrum: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Pseudo-inverse of the basis, window, overlap-add over the summed squared windows, padding cut off."""
    place = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * place / n_fft)
    frames = pseudo_inverse(n_fft) @ np.concatenate([spectrum.real, spectrum.imag])
    total = np.zeros(n_fft + hop * (spectrum.shape[1] - 1))
    weight = np.zeros_like(total)
    for index in range(spectrum.shape[1]):
        stretch = slice(index * hop, index * hop + n_fft)
        total[stretch] += window * frames[:, index]
        weight[stretch] += window**2
    total[weight > 1e-30] /= weight[weight > 1e-30]
    return total[n_fft // 2 : -(n_fft // 2)]


def published_denoiser(bias_audio: np.ndarray, audio: np.ndarray, strength: float) -> np.ndarray:
    bias = np.abs(published_stft(bias_audio, 1024, HOP))[:, :1]
    spectrum = published_stft(audio, 1024, HOP)
    magnitude = np.clip(np.abs(spectrum) - strength * bias, 0, None)
    return published_istft(magnitude * np.exp(1j * np.angle(spectrum)), 1024, HOP)


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 30.0])
def test_equal_to_the_published_algorithm(voice, strength):
    """At a length of whole hops, which is all that the published one returns."""
    model = HummingModel()
    audio = torch.stack([voice[: 100 * HOP], voice[2000 : 2000 + 100 * HOP].flip(0)])
    bias_audio = HummingModel().infer(torch.zeros(1, 80, 88))[0].detach().double().numpy()
    denoised = Denoiser(model)(audio, strength)
    assert denoised.shape == audio.shape
    assert denoised.dtype == torch.float32
    for row, source in zip(denoised, audio, strict=True):
        expected = published_denoiser(bias_audio, source.double().numpy(), strength)
        np.testing.assert_allclose(row.numpy(), expected, rtol=0, atol=2e-6)


def test_bias_comes_from_88_frames_of_zeros_without_noise():
    model = HummingModel()
    denoiser = Denoiser(model)
    ((mel, sigma),) = model.calls
    assert torch.equal(mel, torch.zeros(1, 80, 88))
    assert sigma == 0
    assert denoiser.bias_spec.shape == (1, 513, 1)
    assert not denoiser.bias_spec.requires_grad


def test_normal_mode_draws_the_mel_repeatably():
    model = HummingModel()
    Denoiser(model, mode="normal", generator=torch.Generator().manual_seed(5))
    Denoiser(model, mode="normal", generator=torch.Generator().manual_seed(5))
    (first, sigma), (second, _) = model.calls
    assert torch.equal(first, second)
    assert first.shape == (1, 80, 88)
    assert 0.9 < first.std() < 1.1
    assert sigma == 0


def test_other_channel_counts():
    model = HummingModel(n_mel_channels=40)
    Denoiser(model)
    assert model.calls[0][0].shape == (1, 40, 88)


def test_model_in_half_precision(voice):
    """The model gets its own dtype; the denoiser computes and answers in float32."""
    model = HummingModel().half()
    denoiser = Denoiser(model)
    assert model.calls[0][0].dtype == torch.float16
    assert denoiser.bias_spec.dtype == torch.float32
    assert denoiser(voice[None].half()).dtype == torch.float32


def test_hum_is_removed_and_speech_stays(voice):
    model = HummingModel()
    hum = model.infer(torch.zeros(1, 80, 400)).detach()[:, : len(voice)]
    denoiser = Denoiser(model)
    quiet = denoiser(hum, strength=1.0)
    assert quiet[:, 1024:-1024].square().mean() < 0.01 * hum.square().mean()
    both = denoiser(voice + hum, strength=1.0)
    assert (both - voice).square().mean() < 0.2 * hum.square().mean()


@pytest.mark.parametrize("length", [0, 1, 255, 256, 512, 513, 514, 1000, 1024, 1025, 2047, 2303])
def test_every_length_comes_back_whole(voice, length):
    """Strength 0 is the identity, also behind the last whole hop and below the padding's minimum."""
    denoiser = Denoiser(HummingModel())
    audio = voice[4000 : 4000 + length]
    for shape in ((length,), (1, length)):
        back = denoiser(audio.reshape(shape), strength=0.0)
        assert back.shape == shape
        torch.testing.assert_close(back, audio.reshape(shape), rtol=0, atol=1e-5)
        assert denoiser(audio.reshape(shape)).shape == shape


def test_silence_stays_silence():
    assert torch.equal(Denoiser(HummingModel())(torch.zeros(2, 3000)), torch.zeros(2, 3000))


def test_no_state_and_no_gradient():
    denoiser = Denoiser(HummingModel())
    assert denoiser.state_dict() == {}
    assert list(denoiser.parameters()) == []
    assert not denoiser(torch.randn(1, 2000).requires_grad_()).requires_grad


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_strength(strength):
    with pytest.raises(AudioError, match=f"^`strength` must be finite and at least 0; got {strength}$"):
        Denoiser(HummingModel())(torch.zeros(1, 2000), strength)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "ones"}, '`mode` must be "zeros" or "normal"; got \'ones\''),
        ({"n_fft": 1023}, "`n_fft` must be even and at least 2; got 1023"),
        ({"hop_length": 600}, r"`hop_length` must be in 1\.\.n_fft / 2 = 512; got 600"),
        ({"hop_length": 0}, r"`hop_length` must be in 1\.\.n_fft / 2 = 512; got 0"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(AudioError, match=f"^{message}$"):
        Denoiser(HummingModel(), **settings)


def test_refused_audio():
    denoiser = Denoiser(HummingModel())
    with pytest.raises(AudioError, match=r"^`audio` must be \[T\] or \[B, T\] with B at least 1; got \[1, 1, 2000\]$"):
        denoiser(torch.zeros(1, 1, 2000))
    with pytest.raises(AudioError, match=r"^`audio` must be floating point; got torch\.int64$"):
        denoiser(torch.zeros(2000, dtype=torch.int64))
    with pytest.raises(
        AudioError, match=r"^`audio` must be finite; 1 of 2000 values are not, the first at index \[0, 3\]$"
    ):
        denoiser(torch.zeros(1, 2000).index_fill(1, torch.tensor([3]), torch.nan))
    with pytest.raises(AudioError, match=r"^`audio` must be on the denoiser's device meta; got cpu$"):
        denoiser.to("meta")(torch.zeros(1, 2000))
