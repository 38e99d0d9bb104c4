"""Published models, assembled from `fastflow.nn`."""

from fastflow.models.flowavenet import FloWaveNet
from fastflow.models.glow import Glow
from fastflow.models.graphed import GraphedInfer
from fastflow.models.image_flow import ImageFlow, dequantize, quantize
from fastflow.models.realnvp import RealNVP
from fastflow.models.squeezewave import SqueezeWave
from fastflow.models.vocoder import Vocoder
from fastflow.models.waveglow import WaveGlow, WaveGlowLoss

__all__ = [
    "FloWaveNet",
    "Glow",
    "GraphedInfer",
    "ImageFlow",
    "RealNVP",
    "SqueezeWave",
    "Vocoder",
    "WaveGlow",
    "WaveGlowLoss",
    "dequantize",
    "quantize",
]
