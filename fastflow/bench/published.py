"""The published arithmetic, for comparison: what stacks that use a gated block run, with the weight norm folded.

After NVIDIA/waveglow `glow.py` (`WN.forward`, `WaveGlow.infer`) and jaywalnut310/vits `modules.py` (`WN`, whose masks
Glow-TTS shares): one convolution per layer, the conditioning of all layers in one more, materialised. After
tianrengao/SqueezeWave `glow.py`. And, as a yardstick that is no flow, HiFi-GAN's generator after jik876/hifi-gan
`models.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.models import SqueezeWave, WaveGlow
from fastflow.models.waveglow import CouplingNet
from fastflow.nn import InvertibleConv1x1
from fastflow.nn.conv import remove_weight_norm


def _gate(a: Tensor, b: Tensor, channels: int) -> Tensor:
    """`fused_add_tanh_sigmoid_multiply`; its `torch.jit.script` no longer fuses, `torch.compile` does."""
    u = a + b
    return torch.tanh(u[:, :channels]) * torch.sigmoid(u[:, channels:])


class PublishedWN(nn.Module):
    """A gated stack with fixed weights; arguments as `fastflow.ops.wn` has them."""

    def __init__(
        self,
        conv_weights: Sequence[Tensor],
        conv_biases: Sequence[Tensor],
        res_skip_weights: Sequence[Tensor],
        res_skip_biases: Sequence[Tensor],
        cond_weights: Sequence[Tensor],
        cond_biases: Sequence[Tensor],
        dilations: Sequence[int],
        res_scale: float = 1.0,
    ) -> None:
        super().__init__()

        def constants(tensors: Sequence[Tensor]) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(t.detach().clone(), requires_grad=False) for t in tensors)

        self.conv_weights, self.conv_biases = constants(conv_weights), constants(conv_biases)
        self.res_skip_weights = constants([w[:, :, None] for w in res_skip_weights])
        self.res_skip_biases = constants(res_skip_biases)
        self.cond = constants(
            [torch.cat(list(cond_weights))[:, :, None], torch.cat(list(cond_biases))] if cond_weights else []
        )
        self.dilations, self.res_scale = list(dilations), res_scale
        self.channels = conv_weights[0].shape[1]

    def forward(self, h: Tensor, cond: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        channels = self.channels
        out = torch.zeros_like(h)
        rows = 2 * channels
        projected = F.conv1d(cond, self.cond[0], self.cond[1]) if cond is not None else None
        for i, dilation in enumerate(self.dilations):
            weight = self.conv_weights[i]
            u = F.conv1d(
                h, weight, self.conv_biases[i], padding=dilation * (weight.shape[2] - 1) // 2, dilation=dilation
            )
            part = projected[:, i * rows : (i + 1) * rows] if projected is not None else torch.zeros_like(u)
            r = F.conv1d(_gate(u, part, channels), self.res_skip_weights[i], self.res_skip_biases[i])
            if r.shape[1] > channels:  # but in a last layer of skip rows only
                h = h + r[:, :channels]
                if self.res_scale != 1.0:
                    h = h * self.res_scale
                if mask is not None:
                    h = h * mask
                out = out + r[:, channels:]
            else:
                out = out + r
        return out if mask is None else out * mask


class PublishedWaveGlow(nn.Module):
    """`WaveGlow.infer` with the weights of one of ours."""

    def __init__(self, model: WaveGlow) -> None:
        super().__init__()
        inward, outward, kernel = model.upsample.weight.shape
        self.upsample = nn.ConvTranspose1d(inward, outward, kernel, stride=model.upsample.stride[0])
        self.upsample.load_state_dict(model.upsample.state_dict())
        self.n_group, self.early_size, self.remaining = model.n_group, model.n_early_size, model.n_remaining_channels
        self.early = [k > 0 and k % model.n_early_every == 0 for k in range(model.n_flows)]
        self.nets = nn.ModuleList()
        self.ends = nn.ParameterList()
        for net, convinv in zip(model.WN, model.convinv, strict=True):
            assert isinstance(net, CouplingNet) and isinstance(convinv, InvertibleConv1x1)
            packed = net._pack()
            self.nets.append(PublishedWN(*packed, net.dilations))
            inverse = torch.linalg.inv(convinv.conv.weight[:, :, 0].double())[:, :, None]
            tensors = [net.start.folded_weight(), net.start.bias, net.end.weight, net.end.bias, inverse]
            self.ends.extend(nn.Parameter(t.detach().clone(), requires_grad=False) for t in tensors if t is not None)
        self.to(model.upsample.weight.dtype)

    def forward(self, mel: Tensor, z: Tensor, sigma: float) -> Tensor:
        """Return audio [B, T] for mel [B, n_mel, F] and unit noise z [B, n_group, T / n_group]."""
        spect = self.upsample(mel)
        spect = spect[:, :, : spect.shape[2] - (self.upsample.kernel_size[0] - self.upsample.stride[0])]
        spect = spect.unfold(2, self.n_group, self.n_group).permute(0, 2, 1, 3)
        spect = spect.contiguous().view(spect.shape[0], spect.shape[1], -1).permute(0, 2, 1)
        used = self.remaining
        audio = sigma * z[:, :used]
        for k in reversed(range(len(self.nets))):
            # one by one: torch.compile of PyTorch 2.10 does not follow a slice of a ParameterList
            start_weight, start_bias, end_weight, end_bias, inverse = [self.ends[5 * k + j] for j in range(5)]
            half = audio.shape[1] // 2
            first, second = audio[:, :half], audio[:, half:]
            out = F.conv1d(self.nets[k](F.conv1d(first, start_weight, start_bias), spect), end_weight, end_bias)
            second = (second - out[:, :half]) / torch.exp(out[:, half:])
            audio = F.conv1d(torch.cat((first, second), 1), inverse)
            if self.early[k]:
                audio = torch.cat((sigma * z[:, used : used + self.early_size], audio), 1)
                used += self.early_size
        return audio.permute(0, 2, 1).contiguous().view(audio.shape[0], -1)


class PublishedSqueezeWave(nn.Module):
    """`SqueezeWave.infer` with the weights of one of ours, weight norm folded."""

    def __init__(self, model: SqueezeWave) -> None:
        super().__init__()
        self.early_size, self.remaining = model.n_early_size, model.n_remaining_channels
        self.early = [k > 0 and k % model.n_early_every == 0 for k in range(model.n_flows)]
        self.nets = copy.deepcopy(model.WN).eval()
        for net in self.nets:
            remove_weight_norm(net)
        convinvs: Any = model.convinv
        inverses = [torch.linalg.inv(c.conv.weight[:, :, 0].double())[:, :, None] for c in convinvs]
        self.inverses = nn.ParameterList(nn.Parameter(w.detach(), requires_grad=False) for w in inverses)
        self.to(next(model.parameters()).dtype)

    def flops(self, frames: int, steps: int) -> float:
        """What the convolutions take for mels of so many frames, and so many steps of the flow."""
        found = 0.0
        for name, p in self.named_parameters():
            if p.dim() == 3:
                found += 2.0 * p.numel() * (frames if "cond_layer" in name else steps)
        return found

    def _net(self, net: Any, h: Tensor, mel: Tensor) -> Tensor:
        h = F.conv1d(h, net.start.weight, net.start.bias)
        cond = F.conv1d(mel, net.cond_layer.weight, net.cond_layer.bias)
        cond = F.interpolate(cond, h.shape[2], mode="nearest")
        channels = net.n_channels
        for i, (layer, res) in enumerate(zip(net.in_layers, net.res_skip_layers, strict=True)):
            part = cond[:, 2 * channels * i : 2 * channels * (i + 1)]
            h = h + F.conv1d(_gate(layer(h), part, channels), res.weight, res.bias)
        return F.conv1d(h, net.end.weight, net.end.bias)

    def forward(self, mel: Tensor, z: Tensor, sigma: float) -> Tensor:
        """Return audio [B, T] for mel [B, n_mel, F] and unit noise z [B, n_audio_channel, T / n_audio_channel]."""
        used = self.remaining
        audio = z[:, :used]  # without sigma, as published
        for k in reversed(range(len(self.nets))):
            half = audio.shape[1] // 2
            first, second = audio[:, :half], audio[:, half:]
            out = self._net(self.nets[k], first, mel)
            second = (second - out[:, :half]) / torch.exp(out[:, half:])
            audio = F.conv1d(torch.cat((first, second), 1), self.inverses[k])
            if self.early[k]:
                audio = torch.cat((sigma * z[:, used : used + self.early_size], audio), 1)
                used += self.early_size
        return audio.permute(0, 2, 1).flatten(1)


class _ResBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()

        def convs(spacings: Sequence[int]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in spacings
            )

        self.first, self.second = convs(dilations), convs([1] * len(dilations))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class PublishedHiFiGAN(nn.Module):
    """HiFi-GAN's generator, V1 (`config_v1.json`: 13.9 million weights), weight norm removed, random weights."""

    RATES, DILATIONS = (8, 8, 2, 2), (1, 3, 5)

    def __init__(self, n_mel: int = 80, channels: int = 512, kernels: Sequence[int] = (3, 7, 11)) -> None:
        super().__init__()
        self.before = nn.Conv1d(n_mel, channels, 7, padding=3)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate in self.RATES:
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, padding=rate // 2))
            channels //= 2
            self.blocks.append(nn.ModuleList(_ResBlock(channels, k, self.DILATIONS) for k in kernels))
        self.after = nn.Conv1d(channels, 1, 7, padding=3)
        generator = torch.Generator().manual_seed(0)
        for conv in self.modules():
            if isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):  # so that what goes in still shows in what comes out
                inputs = conv.weight[0].numel() if isinstance(conv, nn.Conv1d) else 2 * conv.in_channels
                nn.init.normal_(conv.weight, std=inputs**-0.5, generator=generator)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
        self.eval().requires_grad_(False)

    def forward(self, mel: Tensor) -> Tensor:
        """Return audio [B, 256 F] for mel [B, n_mel, F]."""
        x = self.before(mel)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            assert isinstance(blocks, nn.ModuleList)
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / len(blocks)
        return torch.tanh(self.after(F.leaky_relu(x)))[:, 0]

    def flops(self, batch: int, frames: int) -> float:
        """Return the arithmetic of its convolutions, a multiply and an add counted as two."""

        def products() -> Iterator[float]:
            steps = frames
            yield steps * self.before.weight.numel()
            for rate, up, blocks in zip(self.RATES, self.ups, self.blocks, strict=True):
                yield steps * sum(p.numel() for p in up.parameters() if p.dim() > 1)
                steps *= rate
                yield steps * sum(p.numel() for p in blocks.parameters() if p.dim() > 1)
            yield steps * self.after.weight.numel()

        return 2.0 * batch * sum(products())


def hifi_gan(n_mel: int, tiny: bool) -> PublishedHiFiGAN:
    return PublishedHiFiGAN(n_mel, 16, (3,)) if tiny else PublishedHiFiGAN(n_mel)
