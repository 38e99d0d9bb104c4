"""The mel front ends that published models were trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fastflow.audio._checks import check_audio, minimum_samples
from fastflow.audio.errors import AudioError

_FLOOR = 1e-5
_PEAK = 0.999


class MelSpectrogram(nn.Module):
    """Audio to log-mel: the front end of NVIDIA/tacotron2 (`TacotronSTFT`), equal to librosa's within 1e-4.

    Reflection padding by n_fft/2 on both sides, periodic Hann window, STFT magnitude (not power, no epsilon),
    Slaney mel filters with Slaney normalisation, natural logarithm of the value clamped to at least 1e-5.

    Everything up to the logarithm is computed in float64 whatever the audio's dtype. In float32 the rounding
    error of the transform, relative to the loudest bin of a frame, reaches 6e-3 in the logarithm of a quiet
    band beside a loud one (9e-4 on plain read speech); librosa's transform is float64 inside as well.

    The window and the filters move to other devices with the module, stay float64 and are not part of its
    state dict.
    """

    window: Tensor
    basis: Tensor
    unit = "ln(mel magnitude)"  # of its values, for a picture
    nepers = 1.0  # of magnitude, that one unit stands for

    def __init__(
        self,
        sampling_rate: int = 22050,
        n_fft: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float = 8000.0,
    ) -> None:
        from librosa.filters import mel

        super().__init__()
        if not 0 < win_length <= n_fft:
            raise AudioError(f"`win_length` must be in 1..n_fft = {n_fft}; got {win_length}")
        if hop_length < 1:
            raise AudioError(f"`hop_length` must be at least 1; got {hop_length}")
        if not 0 <= f_min < f_max <= sampling_rate / 2:
            raise AudioError(
                f"`f_min` and `f_max` must satisfy 0 <= f_min < f_max <= {sampling_rate / 2} Hz; "
                f"got {f_min} and {f_max}"
            )
        self.sampling_rate = sampling_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.win_length = win_length
        self.n_mels = n_mels
        self.f_min = f_min
        self.f_max = f_max
        basis = mel(sr=sampling_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, dtype="float64")
        window = torch.hann_window(win_length, periodic=True, dtype=torch.float64)
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)
        self.register_buffer("window", window, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """The log-mel [B, n_mels, F] (B = 1 for [T]), F = T // hop_length + 1, in audio's dtype.

        audio: [T] or [B, T], finite, of at least n_fft / 2 + 1 samples: less cannot be padded by reflection,
        and padding it otherwise would give another front end's numbers.

        Raises AudioError for less, and for a wrong rank, dtype or device and samples that are not finite.
        """
        check_audio(audio, "audio")
        least = minimum_samples(self.n_fft)
        if audio.shape[-1] < least:
            raise AudioError(f"`audio` must have at least {least} samples (n_fft / 2 + 1); got {audio.shape[-1]}")
        if audio.device != self.basis.device:
            raise AudioError(f"`audio` must be on the module's device {self.basis.device}; got {audio.device}")
        signal = self.levelled(audio.double().reshape(-1, audio.shape[-1]))
        return self.frames(signal).to(audio.dtype)

    def levelled(self, signal: Tensor) -> Tensor:
        """The audio [B, T] at the level that the mel is taken of; each row is a whole file's."""
        return signal

    def frames(self, signal: Tensor) -> Tensor:
        """The log-mel [B, n_mels, F] of audio [B, T] that is at its level: `forward` without checks, in float64."""
        spectrum = torch.stft(
            signal.double(),
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return self.mel_of(spectrum.abs())

    def lead(self, samples: int) -> int:
        """How many samples of what a model makes of the mel come before the first of the audio, `samples` long."""
        return 0

    def mel_of(self, magnitude: Tensor) -> Tensor:
        """The log-mel [B, n_mels, F] of a magnitude spectrum [B, n_fft / 2 + 1, F], in its dtype."""
        return (self.basis.to(magnitude.dtype) @ magnitude).clamp(min=_FLOOR).log()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MelSpectrogram:
        """Follows `.to(device)` but not `.half()` or `.float()`, which would round the filters."""
        basis, window = self.basis, self.window
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.basis, self.window = basis.to(self.basis.device), window.to(self.window.device)
        return self


class FloWaveNetMel(MelSpectrogram):
    """Audio to the mel of FloWaveNet: the front end of ksw0306/FloWaveNet (`preprocessing.py`).

    It differs from `MelSpectrogram` in all but the transform: the audio is first brought to a peak of 0.999, so that
    the mel says nothing of its level; bands lie between 125 and 7600 Hz and hold power, not magnitude; with
    d = 20 log10(max(1e-4, power)) - 20, a value is d / 100 + 1, clipped to 0..1.

    The published program uses librosa's `melspectrogram`, which padded by reflection then and pads with zeros today:
    here it is reflection.
    """

    unit = "mel of FloWaveNet, 0 to 1"
    nepers = 100 / 20 * math.log(10) / 2  # its decibels, 20 to a factor of ten, are of power

    def __init__(
        self,
        sampling_rate: int = 22050,
        n_fft: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        n_mels: int = 80,
        f_min: float = 125.0,
        f_max: float = 7600.0,
    ) -> None:
        super().__init__(sampling_rate, n_fft, hop_length, win_length, n_mels, f_min, f_max)

    def lead(self, samples: int) -> int:
        """The published program pads the audio to whole frames, half of it in front."""
        frames = samples // self.hop_length + 1
        return (frames * self.hop_length - samples) // 2

    def levelled(self, signal: Tensor) -> Tensor:
        peak = signal.abs().amax(1, keepdim=True)
        return signal * (_PEAK / peak.where(peak > 0, 1))  # silence stays silence

    def mel_of(self, magnitude: Tensor) -> Tensor:
        """The mel [B, n_mels, F] of a magnitude spectrum [B, n_fft / 2 + 1, F], in its dtype."""
        decibels = 20 * (self.basis.to(magnitude.dtype) @ magnitude.square()).clamp(min=1e-4).log10() - 20
        return (decibels / 100 + 1).clamp(0, 1)


class _Model(Protocol):
    """What `front_end` needs of a model; those of `fastflow.models` have it."""

    mel_form: str
    sampling_rate: int
    hop_length: int
    n_mel_channels: int


def front_end(model: _Model) -> MelSpectrogram:
    """The front end whose mels a model takes, with its rate, hop and number of bands."""
    forms = {"waveglow": MelSpectrogram, "flowavenet": FloWaveNetMel}
    return forms[model.mel_form](model.sampling_rate, hop_length=model.hop_length, n_mels=model.n_mel_channels)
