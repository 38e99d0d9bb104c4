"""SqueezeWave: WaveGlow with more samples in a step and much cheaper networks.

Zhai, Gao, Xue, Rothchild, Wu, Gonzalez, Keutzer 2020, "SqueezeWave: Extremely Lightweight Vocoders for On-device Speech
Synthesis"; names, shapes and order of random draws follow tianrengao/SqueezeWave, `glow.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastflow.models.vocoder import Vocoder
from fastflow.models.waveglow import WaveGlow
from fastflow.nn import Conv1d
from fastflow.nn.packing import PackingModule
from fastflow.ops import checks, registry
from fastflow.ops.gate.api import gate


class Weights(NamedTuple):
    """A network's layers as the CPU library takes them, in float32 or wider.

    Batch normalisation is `scale` and `shift`; the three biases in front of the gate are one.
    """

    scale: Tensor  # [L, C]
    shift: Tensor  # [L, C]
    taps: Tensor  # [L, C, 3]
    weight: Tensor  # [L, 2 C, C]
    bias: Tensor  # [L, 2 C]
    res_weight: Tensor  # [L, C, C]
    res_bias: Tensor  # [L, C]
    cond_weight: Tensor  # [L 2 C, n_mel_channels]


class SeparableNet(PackingModule[Weights]):
    """SqueezeWave's `WN`: gated layers of batch normalisation, a depthwise and a pointwise convolution.

    A layer has a residual output and no skip, so that this is no case of the fused block `fastflow.ops.wn`. Inference
    on a CPU has a kernel of its own, `csrc/cpu/kernels/separable_wn.h`. Elsewhere the convolutions are PyTorch's and
    the gate is `fastflow.ops.gate`; that is also what the kernel is held to.

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
        kernel = self._kernel(h)
        h = self._layers(h, mel) if kernel is None else self._in_one(kernel, h, mel)
        out: Tensor = self.end(h) if end else h
        return out

    def _kernel(self, h: Tensor) -> Callable[..., Any] | None:
        """Return the CPU library's `separable_wn`, where it can run all layers.

        It knows neither gradients nor the statistics of a batch, and torch.compile sees more in the layers.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or checks.autocast_is_on(h.device):
            return None
        if any(module.training for module in self.in_layers.modules()):
            return None
        return registry.cpu_kernel("separable_wn", h)

    def _layers(self, h: Tensor, mel: Tensor) -> Tensor:
        """Run the layers one by one on h [B, C, T]."""
        cond = self.cond_layer(mel).chunk(len(self.in_layers), 1)
        for layer, res_skip, frames in zip(self.in_layers, self.res_skip_layers, cond, strict=True):
            if h.shape[2]:  # PyTorch's convolutions refuse no steps
                u = layer(h).reshape(*frames.shape, -1) + frames[..., None]
                h = h + res_skip(gate(u.flatten(2)))
        return h

    def _in_one(self, kernel: Callable[..., Any], h: Tensor, mel: Tensor) -> Tensor:
        """Run the layers in one call of `kernel`."""
        *layers, cond_weight = self._packed.get(self._stored(), self._pack)
        cond = cond_weight @ mel.to(cond_weight.dtype)
        out: Tensor = kernel(h.to(cond.dtype), cond, *layers)
        return out.to(h.dtype)

    def _stored(self) -> list[Tensor]:
        convs: list[Any] = [*self.res_skip_layers, self.cond_layer]
        return [*self.in_layers.parameters(), *self.in_layers.buffers(), *(t for c in convs for t in c.stored())]

    def _pack(self) -> Weights:
        layers: Any = self.in_layers
        norms, depthwise, pointwise = zip(*layers, strict=True)
        residual: Any = self.res_skip_layers
        wide = torch.promote_types(self.cond_layer.folded_weight().dtype, torch.float32)

        def stack(tensors: Any) -> Tensor:
            return torch.stack([t.to(wide) for t in tensors])

        scale = stack(n.weight for n in norms) * torch.rsqrt(stack(n.running_var + n.eps for n in norms))
        weight = stack(conv.weight[:, :, 0] for conv in pointwise)
        assert self.cond_layer.bias is not None
        bias = stack(conv.bias for conv in pointwise) + self.cond_layer.bias.to(wide).view(len(norms), -1)
        return Weights(
            scale,
            stack(n.bias for n in norms) - stack(n.running_mean for n in norms) * scale,
            stack(conv.weight[:, 0] for conv in depthwise),
            weight,
            bias + (weight @ stack(conv.bias for conv in depthwise)[..., None])[..., 0],
            stack(conv.folded_weight()[:, :, 0] for conv in residual),
            stack(conv.bias for conv in residual),
            self.cond_layer.folded_weight()[:, :, 0].to(wide),
        )


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
