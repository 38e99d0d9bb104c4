"""What all vocoders here have: their face, the checks of their arguments, and how they draw their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.nn.backprop import FlowModel
from fastflow.ops import checks


class Vocoder(FlowModel):
    """A model that turns mel spectrograms into audio: what `fastflow.load` returns.

    `config` holds the keyword arguments that make the same model again. A mel frame stands for `hop_length` samples;
    `mel_form` says how it is computed, see `fastflow.audio.front_end`.
    """

    sampling_rate = 22050
    hop_length: int
    n_mel_channels: int
    config: dict[str, Any]
    mel_form = "waveglow"
    usual_sigma = 1.0  # what its authors synthesise with

    def infer(
        self,
        mel: Tensor,
        sigma: float = 1.0,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return audio [B, F * hop_length] for `mel` [B, n_mel_channels, F]; each model says more."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """Return the networks that a synthesis runs, each once: nearly all of its work."""
        raise NotImplementedError


def check_mel(name: str, mel: Tensor, channels: int, parameter: Tensor) -> None:
    """Raise unless `mel` is [B, channels, F] in the dtype and on the device of one of the model's parameters."""
    checks.check_floating(name, mel)
    if mel.dim() != 3 or mel.shape[1] != channels:
        raise ValueError(f"`{name}` must be [B, {channels}, T]; got {list(mel.shape)}")
    if mel.device != parameter.device:
        raise ValueError(f"`{name}` must be on the model's device, {parameter.device}; got {mel.device}")
    if mel.dtype != parameter.dtype:
        raise ValueError(f"`{name}` must have the model's dtype, {parameter.dtype}; got {mel.dtype}")


def check_synthesis(mel: Tensor, sigma: float) -> None:
    """Raise ValueError for a `mel` that is not finite, or a `sigma` that is no standard deviation."""
    if not torch.compiler.is_compiling():
        checks.check_finite("mel", mel)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"`sigma` must be a finite number >= 0; got {sigma}")


def unit_noise(
    z: Tensor | None,
    generator: torch.Generator | None,
    mel: Tensor,
    layout: str,
    widths: Sequence[int],
    steps: int,
) -> Tensor:
    """Return noise [B, sum(widths), steps] of unit variance: `z` if given, else one draw for each of `widths`."""
    if z is not None:
        if generator is not None:
            raise ValueError("`generator` must be None where `z` is given; got both")
        checks.check_shape("z", z, layout, (mel.shape[0], sum(widths), steps))
        checks.check_like("z", z, "mel", mel)
        return z
    if generator is not None and generator.device.type != mel.device.type:
        raise ValueError(f"`generator` must be on the device of `mel`, {mel.device}; got {generator.device}")
    draws = [
        torch.randn(mel.shape[0], width, steps, generator=generator, dtype=mel.dtype, device=mel.device)
        for width in widths
    ]
    return torch.cat(draws, 1)
