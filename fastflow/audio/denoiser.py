"""Takes the faint stationary hum that a flow vocoder adds by itself out of its audio."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastflow.audio._checks import check_audio, minimum_samples
from fastflow.audio.errors import AudioError

# Length of the mel whose resynthesis shows the bias. Only the first frame of its spectrum is used, but the
# published vocoder's receptive field reaches over many frames, so a shorter mel would give other numbers.
_BIAS_FRAMES = 88


class Vocoder(Protocol):
    """What the denoiser needs of a model; those of `fastflow.models` have it."""

    n_mel_channels: int

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def infer(self, mel: Tensor, sigma: float = 1.0) -> Tensor: ...


class Denoiser(nn.Module):
    """The bias denoiser of NVIDIA/waveglow (denoiser.py), on the model's device.

    What the model says without noise (sigma 0) to a mel that says nothing is its bias. The first frame of the
    bias's magnitude spectrum, times a strength, is subtracted from every frame's magnitude spectrum of the
    audio, which is clamped at 0; the phase stays. All in float32, whatever the model's dtype.

    `bias_spec`: [1, n_fft / 2 + 1, 1], float32. Neither it nor the window is part of the state dict: both
    follow from the model and the arguments.
    """

    window: Tensor
    bias_spec: Tensor

    def __init__(
        self,
        model: Vocoder,
        *,
        n_fft: int = 1024,
        hop_length: int = 256,
        mode: str = "zeros",
        generator: torch.Generator | None = None,
    ) -> None:
        """mode: the mel whose bias is measured: all "zeros", or drawn from a "normal" distribution, on the
        CPU, with `generator` if one is given. The STFT's window is a periodic Hann window of n_fft samples;
        hop_length is at most half of that.
        """
        super().__init__()
        if mode not in ("zeros", "normal"):
            raise AudioError(f'`mode` must be "zeros" or "normal"; got {mode!r}')
        if n_fft < 2 or n_fft % 2:
            raise AudioError(f"`n_fft` must be even and at least 2; got {n_fft}")
        if not 1 <= hop_length <= n_fft // 2:
            raise AudioError(f"`hop_length` must be in 1..n_fft / 2 = {n_fft // 2}; got {hop_length}")
        self.n_fft = n_fft
        self.hop_length = hop_length
        parameter = next(model.parameters())
        shape = (1, model.n_mel_channels, _BIAS_FRAMES)
        mel = torch.zeros(shape) if mode == "zeros" else torch.randn(shape, generator=generator)
        # The model draws noise even where sigma 0 makes nothing of it: the program's random state must not move. Where
        # sigma 0 leaves some of it (SqueezeWave), the bias should at least be the same each time.
        devices = [parameter.device] if parameter.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            _seed(parameter.device)
            audio = model.infer(mel.to(parameter), sigma=0.0).float()
        self.register_buffer("window", torch.hann_window(n_fft, device=audio.device), persistent=False)
        # Cloned: a view of one frame would keep the whole spectrum alive.
        self.register_buffer("bias_spec", self._stft(audio).abs()[:, :, :1].clone(), persistent=False)

    @torch.no_grad()
    def forward(self, audio: Tensor, strength: float = 0.1) -> Tensor:
        """audio: [B, T] or [T], finite, on the denoiser's device. Returns the same shape in float32.

        strength: at least 0; 0 returns the audio up to rounding. Audio too short for the STFT's reflection
        padding (less than n_fft / 2 + 1 samples, none at all included) is continued with zeros and cut again.

        The published STFT returns whole hops only; here every sample comes back, also where T is no multiple
        of the hop.
        """
        check_audio(audio, "audio")
        if audio.device != self.bias_spec.device:
            raise AudioError(f"`audio` must be on the denoiser's device {self.bias_spec.device}; got {audio.device}")
        if not (math.isfinite(strength) and strength >= 0):
            raise AudioError(f"`strength` must be finite and at least 0; got {strength}")
        length = audio.shape[-1]
        signal = audio.float() if audio.dim() == 2 else audio.float().unsqueeze(0)
        signal = pad(signal, (0, max(0, minimum_samples(self.n_fft) - length)))
        spectrum = self._stft(signal)
        magnitude = (spectrum.abs() - strength * self.bias_spec).clamp(min=0)
        denoised = torch.istft(
            torch.polar(magnitude, spectrum.angle()),
            self.n_fft,
            self.hop_length,
            window=self.window,
            length=signal.shape[-1],
        )
        return denoised[:, :length].reshape(audio.shape)

    def _stft(self, audio: Tensor) -> Tensor:
        return torch.stft(
            audio, self.n_fft, self.hop_length, window=self.window, pad_mode="reflect", return_complex=True
        )


def _seed(device: torch.device) -> None:
    """Seed PyTorch's generator of one device, where `torch.manual_seed` would seed those of all."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)
