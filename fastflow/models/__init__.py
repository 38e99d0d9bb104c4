"""Published models, assembled from `fastflow.nn`."""

from fastflow.models.waveglow import WaveGlow, WaveGlowLoss

__all__ = ["WaveGlow", "WaveGlowLoss"]
