"""Brings audio to the mel spectrogram that it was made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastflow.audio._checks import check_audio, check_finite, minimum_samples
from fastflow.audio.errors import AudioError
from fastflow.audio.mel import MelSpectrogram

HIGHEST = 60.0
"""Nepers that a mel may ask for: far beyond any audio, and far enough from what float32 holds."""

USUAL_ITERATIONS = 30
"""What the bundled model's figures are for; each one more helps less."""


class MelConsistency(nn.Module):
    """Iterations between what a mel spectrogram asks of audio and what a signal's spectrum can be.

    A flow vocoder draws audio at random, and the mel of what it made is only near the one that it was given. Each
    iteration scales the spectrum, bin by bin, so that its mel becomes the given one, and takes the spectrum of the
    signal nearest to the result, as Griffin and Lim 1984 do for a magnitude spectrum that is known whole. Here only
    its mel is known, and what lies within a band stays as the vocoder made it, harmonics and phases too: bin k is
    multiplied by exp(sum over bands j of w_jk ln(M_j / m_j)), M the given mel and m the one there is, w_jk the share of
    band j in all filters' gain at k. That is generalised iterative scaling (Darroch and Ratcliff 1972), the
    simultaneous multiplicative algebraic reconstruction of tomography. Bins that no band covers are left alone.
    Momentum as in Perraudin, Balazs and Sondergaard 2013, "A fast Griffin-Lim algorithm".

    It is no part of any published vocoder: without it, audio is what the publication's would be.

    Args:
        front_end: what the mel was computed by; its spectrum is the one iterated on. None for `MelSpectrogram()`.
        momentum: at least 0, the plain iteration, and less than 1.

    Raises:
        AudioError: `momentum` is out of range, or the front end's frames do not overlap by half.
    """

    window: Tensor
    share: Tensor

    def __init__(self, front_end: MelSpectrogram | None = None, *, momentum: float = 0.99) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise AudioError(f"`momentum` must be at least 0 and less than 1; got {momentum}")
        self.front_end = MelSpectrogram() if front_end is None else front_end
        self.momentum = momentum
        front = self.front_end
        if front.hop_length > front.win_length // 2:
            raise AudioError(
                f"`front_end` must have a hop of at most half its window, for frames that overlap; got hop_length "
                f"{front.hop_length} and win_length {front.win_length}"
            )
        total = front.basis.sum(0)
        share = (front.basis / total.where(total > 0, 1)).T
        self.register_buffer("share", share.float(), persistent=False)
        self.register_buffer("window", front.window.float(), persistent=False)

    @torch.no_grad()
    def forward(self, audio: Tensor, mel: Tensor, iterations: int = USUAL_ITERATIONS) -> Tensor:
        """Return `audio`, refined, float32 in the same shape.

        Args:
            audio: [B, T] or [T], finite, on the module's device, aligned with the mel: frame f around sample f *
                hop_length. Audio too short for the front end's padding (n_fft / 2 samples or less) comes back as it is.
            mel: [B, n_mels, F], of the front end, F = T // hop_length + 1, or one less, as where a vocoder made F *
                hop_length samples of it: then the last frame holds to the end.
            iterations: how many, at least 0; each takes one transform and its inverse.

        Raises:
            AudioError: a rank, size, dtype or device does not fit, a value is not finite, the mel is no logarithm of
                magnitudes (above exp(60)), or `iterations` is negative.
        """
        check_audio(audio, "audio")
        signal = audio.float() if audio.dim() == 2 else audio.float().unsqueeze(0)
        self._check(signal, mel, iterations)
        front, length = self.front_end, signal.shape[1]
        if length < minimum_samples(front.n_fft):
            return signal.reshape(audio.shape)
        target = mel.float()
        target = pad(target, (0, length // front.hop_length + 1 - mel.shape[2]), mode="replicate")
        window, share = self.window.float(), self.share.float()  # also where the module was converted
        before: Tensor | None = None
        for _ in range(iterations):
            spectrum = self._stft(signal, window)
            ahead = spectrum if before is None else spectrum + self.momentum * (spectrum - before)
            before = spectrum
            gain = share @ (front.nepers * (target - front.mel_of(ahead.abs())))
            signal = self._istft(ahead * gain.exp(), window, length)
        return signal.reshape(audio.shape)

    def _check(self, signal: Tensor, mel: Tensor, iterations: int) -> None:
        front = self.front_end
        if iterations < 0:
            raise AudioError(f"`iterations` must be at least 0; got {iterations}")
        if not isinstance(mel, Tensor) or not mel.is_floating_point():
            got = mel.dtype if isinstance(mel, Tensor) else type(mel).__name__
            raise AudioError(f"`mel` must be a floating-point tensor; got {got}")
        frames = signal.shape[1] // front.hop_length + 1
        fits = mel.dim() == 3 and mel.shape[:2] == (signal.shape[0], front.n_mels)
        if not fits or mel.shape[2] not in (frames, frames - 1):
            raise AudioError(
                f"`mel` must be [{signal.shape[0]}, {front.n_mels}, {frames} or {frames - 1}] for {signal.shape[1]} "
                f"samples of `audio`; got {list(mel.shape)}"
            )
        for name, tensor in (("audio", signal), ("mel", mel)):
            if tensor.device != self.share.device:
                raise AudioError(f"`{name}` must be on the module's device {self.share.device}; got {tensor.device}")
        check_finite(mel, "`mel`")
        highest = float(mel.max()) if mel.numel() else 0.0
        if highest * front.nepers > HIGHEST:
            raise AudioError(
                f"`mel` must be {front.unit}, at most {HIGHEST / front.nepers:.3g}; got up to {highest:.3g}"
            )

    def _stft(self, signal: Tensor, window: Tensor) -> Tensor:
        front = self.front_end
        return torch.stft(
            signal,
            front.n_fft,
            front.hop_length,
            front.win_length,
            window,
            pad_mode="reflect",
            return_complex=True,
        )

    def _istft(self, spectrum: Tensor, window: Tensor, length: int) -> Tensor:
        front = self.front_end
        return torch.istft(spectrum, front.n_fft, front.hop_length, front.win_length, window, length=length)
