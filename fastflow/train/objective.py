"""What each vocoder is trained on: its likelihood, from a batch of mels and audio."""

from __future__ import annotations

from torch import Tensor, nn

from fastflow.models import Vocoder, WaveGlow, WaveGlowLoss


class Objective(nn.Module):
    """A model with its published loss: mel [B, M, F + 1] and audio [B, F * hop] to a scalar.

    Args:
        model: a `WaveGlow`, `SqueezeWave` or `FloWaveNet`.
        sigma: assumed standard deviation of the latent; FloWaveNet's is 1.
    """

    def __init__(self, model: Vocoder, sigma: float) -> None:
        super().__init__()
        self.model = model
        self.loss = WaveGlowLoss(sigma)

    def forward(self, mel: Tensor, audio: Tensor) -> Tensor:
        """Return the loss in nats per sample, up to a constant."""
        if type(self.model) is not WaveGlow:  # whose upsampler covers the audio with a frame more
            mel = mel[:, :, : audio.shape[1] // self.model.hop_length]
        loss: Tensor
        if isinstance(self.model, WaveGlow):
            loss = self.loss(self.model((mel, audio)))
        else:
            log_p, log_det = self.model(audio[:, None], mel)
            loss = -(log_p + log_det)
        return loss
