"""SqueezeWave: WaveGlow with more samples in a step and much cheaper networks.

Zhai, Gao, Xue, Rothchild, Wu, Gonzalez, Keutzer 2020, "SqueezeWave: Extremely Lightweight Vocoders for On-device Speech
Synthesis"; names, shapes and order of random draws follow tianrengao/SqueezeWave, `glow.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.models.vocoder import Vocoder
from fastflow.models.waveglow import WaveGlow
from fastflow.nn import Conv1d
from fastflow.ops.gate.api import gate


class SeparableNet(nn.Module):
    """SqueezeWave's `WN`: gated layers of batch normalisation, a depthwise and a pointwise convolution.

    A layer has a residual output and no skip, so that this is no case of the fused block `fastflow.ops.wn`: the
    convolutions are PyTorch's, the gate is `fastflow.ops.gate`.

    Args:
        n_in_channels: channels in; twice as many come out.
        n_mel_channels: channels of the conditioning.
        n_layers: L, all of dilation 1.
        n_channels: C.
        kernel_size: of the depthwise convolutions: 3.
    """

    def __init__(self, n_in_channels: int, n_mel_channels: int, n_layers: int, n_channels: int, kernel_size: int):
        super().__init__()
        self.n_channels = n_channels
        self.in_layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(n_channels),
                nn.Conv1d(n_channels, n_channels, kernel_size, padding=kernel_size // 2, groups=n_channels),
                nn.Conv1d(n_channels, 2 * n_channels, 1),
            )
            for _ in range(n_layers)
        )
        self.res_skip_layers = nn.ModuleList(Conv1d(n_channels, n_channels) for _ in range(n_layers))
        self.start = Conv1d(n_in_channels, n_channels)
        self.end = Conv1d(n_channels, 2 * n_in_channels, weight_norm=False)
        self.cond_layer = Conv1d(n_mel_channels, 2 * n_channels * n_layers)
        for parameter in self.end.stored():  # an untrained coupling changes nothing
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, mel: Tensor, *, end: bool = True) -> Tensor:
        """Return shift and log scale [B, 2 * n_in_channels, T] for the kept half `h` [B, n_in_channels, T].

        `mel` is [B, n_mel_channels, F], where F divides T: each frame conditions T / F steps. Without `end`, return
        what the convolution of that name takes: [B, n_channels, T].
        """
        h = self.start(h)
        cond = self.cond_layer(mel).chunk(len(self.in_layers), 1)
        for layer, res_skip, frames in zip(self.in_layers, self.res_skip_layers, cond, strict=True):
            if h.shape[2]:  # PyTorch's convolutions refuse no steps
                u = layer(h).reshape(*frames.shape, -1) + frames[..., None]
                h = h + res_skip(gate(u.flatten(2)))
        out: Tensor = self.end(h) if end else h
        return out


class SqueezeWave(WaveGlow):
    """The published SqueezeWave, under its published state-dict keys.

    It is a WaveGlow of other networks, without an upsampler: a mel frame stands for 256 / n_audio_channel steps. As
    published, `infer` does not multiply the noise that remains to the last flow by `sigma`, only that of the early
    outputs, and batch normalisation uses its running statistics only after `eval()`.

    The published `remove_weightnorm` also folds batch normalisation into the depthwise convolutions. That changes the
    first and the last step of each layer, since what lies beyond the ends is zero after normalisation, not before. Here
    batch normalisation stays, and so does the output.

    Args:
        n_mel_channels: mel bands of the conditioning (published: 80).
        n_flows: steps of flow, each a 1x1 convolution and a coupling (12).
        n_audio_channel: samples folded into one step of time (128 or 256), an even divisor of 256.
        n_early_every: after every so many flows, `n_early_size` channels leave the flow early (2).
        n_early_size: channels that leave at once (16).
        WN_config: sizes of the coupling networks: `n_layers` (8), `n_channels` (128 or 256), `kernel_size` (3).
        backprop: "autograd", "recompute" or "invert": what a training step keeps in memory; see
            `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: sizes that do not fit each other; the message names them.
    """

    usual_sigma = 1.0

    def __init__(
        self,
        n_mel_channels: int,
        n_flows: int,
        n_audio_channel: int,
        n_early_every: int,
        n_early_size: int,
        WN_config: Mapping[str, int],
        *,
        backprop: str = "autograd",
    ) -> None:
        Vocoder.__init__(self)
        self.backprop = backprop
        self._check_config(
            n_mel_channels, n_flows, n_audio_channel, n_early_every, n_early_size, WN_config, "n_audio_channel"
        )
        self.hop_length = 256
        if self.hop_length % n_audio_channel:
            raise ValueError(f"`n_audio_channel` must divide the hop, {self.hop_length}; got {n_audio_channel}")
        if WN_config["kernel_size"] != 3:
            raise ValueError(f"`WN_config` must have a kernel_size of 3, as published; got {WN_config['kernel_size']}")
        self.config: dict[str, Any] = {
            "n_mel_channels": n_mel_channels,
            "n_flows": n_flows,
            "n_audio_channel": n_audio_channel,
            "n_early_every": n_early_every,
            "n_early_size": n_early_size,
            "WN_config": dict(WN_config),
        }
        self.n_mel_channels, self.n_flows = n_mel_channels, n_flows
        self.n_group = self.n_audio_channel = n_audio_channel
        self.n_early_every, self.n_early_size = n_early_every, n_early_size
        self.alternate_halves = False
        self._add_flows(lambda half: SeparableNet(half, n_mel_channels, **WN_config))

    def _conditioning(self, mel: Tensor, steps: int) -> Tensor:
        return mel

    def _inputs_saved(self) -> int:
        return 0  # there is no upsampler

    def _check_audio(self, mel: Tensor, audio: Tensor) -> None:
        if audio.shape[1] != mel.shape[2] * self.hop_length:
            raise ValueError(
                f"`audio` must have the {mel.shape[2] * self.hop_length} samples that `mel` {list(mel.shape)} stands "
                f"for; got {list(audio.shape)}"
            )

    def _scaled(self, noise: Tensor, sigma: float) -> Tensor:
        kept = self.n_remaining_channels
        return torch.cat((noise[:, :kept], noise[:, kept:] * sigma), 1)
