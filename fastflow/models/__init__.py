"""Published models, assembled from `fastflow.nn`."""

from fastflow.models.flowavenet import FloWaveNet
from fastflow.models.graphed import GraphedInfer
from fastflow.models.squeezewave import SqueezeWave
from fastflow.models.vocoder import Vocoder
from fastflow.models.waveglow import WaveGlow, WaveGlowLoss

__all__ = ["FloWaveNet", "GraphedInfer", "SqueezeWave", "Vocoder", "WaveGlow", "WaveGlowLoss"]
