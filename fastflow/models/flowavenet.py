"""FloWaveNet: mel spectrogram to audio by an invertible network without 1x1 convolutions.

Kim, Lee, Song, Kim, Yoon 2019, "FloWaveNet: A Generative Flow for Raw Audio"; names, shapes and formulas follow
ksw0306/FloWaveNet, `model.py` and `modules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.models.vocoder import Vocoder, check_mel, check_synthesis, unit_noise
from fastflow.nn import ActNorm, Conv1d
from fastflow.nn.backprop import Step
from fastflow.nn.conv import NormedConv, remove_weight_norm
from fastflow.nn.packing import PackingModule
from fastflow.nn.shapes import exchange_halves
from fastflow.nn.wn import GatedStack, Weights
from fastflow.ops import checks
from fastflow.ops.flow_step.api import flow_step

UPSAMPLE_SCALES = (16, 16)
_LOG_2PI = math.log(2 * math.pi)


def squeeze(x: Tensor, times: int = 1) -> Tensor:
    """Fold pairs of neighbours in time into channels, `times` times: [B, C, T] -> [B, C * 2**times, T / 2**times].

    Each time, sample p of a pair of channel c goes to channel 2 * c + p. After several times the channels are therefore
    not in the order of time: the last bit of the time is the first to become a part of the channel.
    """
    split = x.reshape(*x.shape[:2], x.shape[2] // 2**times, *[2] * times)
    return split.permute(0, 1, *range(2 + times, 2, -1), 2).flatten(1, 1 + times)


def unsqueeze(x: Tensor) -> Tensor:
    """Undo one `squeeze`: [B, 2 * C, T] -> [B, C, 2 * T]."""
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2]).transpose(2, 3).flatten(2)


class UpsampleConv(NormedConv):
    """One step of the upsampler, [B, 1, M, F] -> [B, 1, M, F * scale]: 3 bands high, 2 * scale samples wide."""

    def __init__(self, scale: int) -> None:
        super().__init__((1, 1, 3, 2 * scale), 1, 3 * 2 * scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = (1, self.scale), (1, self.scale // 2)
        return F.conv_transpose2d(x, self._used_weight(), self.bias, stride=stride, padding=padding)


class Conv(nn.Module):
    """A convolution under the published name of its parameters, `conv`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class ZeroConv1d(nn.Module):
    """A 1x1 convolution times exp(3 * scale), one scale per channel. All of it starts at zero, and gives zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv1d(in_channels, out_channels, weight_norm=False)
        self.scale = nn.Parameter(torch.zeros(1, out_channels, 1))
        for parameter in self.conv.stored():
            nn.init.zeros_(parameter)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight [C_out, C_in] and the bias [C_out] of the one convolution that this is."""
        assert self.conv.weight is not None and self.conv.bias is not None
        factor = torch.exp(3 * self.scale)
        return self.conv.weight[:, :, 0] * factor[0], self.conv.bias * factor[0, :, 0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * torch.exp(3 * self.scale)
        return out


class ResBlock(nn.Module):
    """The parameters of one layer of the stack, under their published names."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, cin_channels: int) -> None:
        super().__init__()
        self.filter_conv = Conv(channels, channels, kernel_size, dilation)
        self.gate_conv = Conv(channels, channels, kernel_size, dilation)
        self.res_conv = Conv1d(channels, channels)
        self.skip_conv = Conv1d(channels, channels)
        self.filter_conv_c = Conv1d(cin_channels, channels)
        self.gate_conv_c = Conv1d(cin_channels, channels)


class Wavenet(GatedStack):
    """The published `Wavenet` in the form in which the model uses it: not causal, one block, with skips.

    front_conv and ReLU; the gated stack, its residual sums times sqrt(0.5); ReLU, 1x1, ReLU and a `ZeroConv1d`. The
    last layer's `res_conv` is there and has no effect, as published.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        num_layers: L; layer i has dilation 2**i.
        channels: of the residual stream, the gate and the skips.
        cin_channels: channels of the conditioning.
    """

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, channels: int, cin_channels: int) -> None:
        super().__init__([2**i for i in range(num_layers)], res_scale=math.sqrt(0.5))
        self.front_conv = nn.Sequential(Conv(in_channels, channels, 3), nn.ReLU())
        self.res_blocks = nn.ModuleList(ResBlock(channels, 3, d, cin_channels) for d in self.dilations)
        self.final_conv = nn.Sequential(
            nn.ReLU(), Conv(channels, channels, 1), nn.ReLU(), ZeroConv1d(channels, out_channels)
        )

    @property
    def end(self) -> ZeroConv1d:
        """The last convolution."""
        return cast(ZeroConv1d, self.final_conv[3])

    def _layers(self) -> list[tuple[list[Conv1d], list[Conv1d], list[Conv1d]]]:
        """Return for each layer the convolutions whose rows the stack takes together: gated, out, conditioning."""
        layers = []
        for i, block in enumerate(cast(Sequence[ResBlock], self.res_blocks)):
            residual = [block.res_conv] if i + 1 < len(self.res_blocks) else []
            gated = [block.filter_conv.conv, block.gate_conv.conv]  # tanh first, sigmoid second
            layers.append((gated, [*residual, block.skip_conv], [block.filter_conv_c, block.gate_conv_c]))
        return layers

    def _stored(self) -> list[Tensor]:
        return [t for layer in self._layers() for convs in layer for conv in convs for t in conv.stored()]

    def _pack(self) -> Weights:
        def joined(column: int) -> tuple[list[Tensor], list[Tensor]]:
            rows = [layer[column] for layer in self._layers()]
            weights = [torch.cat([conv.folded_weight() for conv in convs]) for convs in rows]
            return weights, [torch.cat([conv.bias for conv in convs if conv.bias is not None]) for convs in rows]

        conv_weights, conv_biases = joined(0)
        out_weights, out_biases = joined(1)
        cond_weights, cond_biases = joined(2)
        return Weights(
            conv_weights,
            conv_biases,
            [w[:, :, 0] for w in out_weights],
            out_biases,
            [w[:, :, 0] for w in cond_weights],
            cond_biases,
        )

    def forward(self, x: Tensor, cond: Tensor, *, end: bool = True) -> Tensor:
        """Return [B, out_channels, T] of `x` [B, in_channels, T], or without `end` what the last convolution takes."""
        h: Tensor = self.final_conv[:3](self._stack(self.front_conv(x), cond))
        if not end:
            return h
        out: Tensor = self.end(h)
        return out


class Coupling(PackingModule[tuple[Tensor, Tensor]]):
    """The affine coupling: the second half of the channels becomes (x - t) * exp(-log_s), or additive x + t.

    `net` gives log_s first and t second. `fastflow.ops.flow_step` calls them log scale and shift, takes them the other
    way round, and means by forward what is the inverse here.
    """

    def __init__(self, net: Wavenet, *, affine: bool) -> None:
        super().__init__()
        self.net = net
        self.affine = affine

    def _pack(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.net.end.folded()
        if self.affine:
            weight, bias = exchange_halves(weight.T).T, exchange_halves(bias[None])[0]
        return weight, bias

    def forward(self, x: Tensor, hidden: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y [B, C, T] and the log-determinant [B], for what `net` made of the first half without its `end`."""
        weight, bias = self._packed.get([self.net.end.scale, *self.net.end.conv.stored()], self._pack)
        form = "exp" if self.affine else "additive"
        return flow_step(x, hidden, weight, bias, form=form, reverse=reverse != self.affine)


class Flow(nn.Module):
    """One step of flow: actnorm, coupling, and the halves change places."""

    def __init__(self, channels: int, cin_channels: int, filter_size: int, num_layers: int, affine: bool, ready: bool):
        super().__init__()
        half = channels // 2
        self.actnorm = ActNorm(channels, initialized=ready)
        net = Wavenet(half, channels if affine else half, num_layers, filter_size, cin_channels // 2)
        self.coupling = Coupling(net, affine=affine)

    def hidden(self, kept: Tensor, cond: Tensor) -> Tensor:
        """Return what the coupling is to know of the first half, `kept`; `cond` is the half that goes with it."""
        hidden: Tensor = self.coupling.net(kept, cond, end=False)
        return hidden

    def leave(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [B, C, T] of x behind actnorm, and the coupling's log-determinant [B]."""
        y, log_s = self.coupling(x, hidden)
        return exchange_halves(y), log_s

    def inverse(self, y: Tensor, hidden: Tensor) -> Tensor:
        """Return the flow's input [B, C, T]."""
        x, _ = self.coupling(exchange_halves(y), hidden, reverse=True)
        out: Tensor = self.actnorm(x, reverse=True)[0]
        return out

    def reverse(self, y: Tensor, cond: Tensor) -> Tensor:
        """Return x [B, C, T]."""
        return self.inverse(y, self.hidden(y.chunk(2, 1)[1], cond))


class Block(nn.Module):
    """The flows between two squeezes, and where channels leave after them the network of these channels' prior."""

    def __init__(
        self,
        channels: int,
        cin_channels: int,
        n_flow: int,
        n_layer: int,
        filter_size: int,
        affine: bool,
        ready: bool,
        split: bool,
    ):
        super().__init__()
        self.flows = nn.ModuleList(
            Flow(channels, cin_channels, filter_size, n_layer, affine, ready) for _ in range(n_flow)
        )
        self.prior = Wavenet(channels // 2, channels, 2, filter_size, cin_channels) if split else None

    def prior_of(self, x: Tensor, halves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and log of the standard deviation of the channels that leave, for those that stay."""
        assert self.prior is not None
        mean, log_sd = self.prior(x, torch.cat(list(halves), 1)).to(x.dtype).chunk(2, 1)
        return mean, log_sd


class _FlowStep(Step):
    """A flow, and before a block's first one the squeeze."""

    def __init__(self, flow: Flow, name: str, cond: int, squeezes: bool) -> None:
        self.flow, self.name, self.conds, self.squeezes = flow, name, (cond,), squeezes
        self.parts = [flow]

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        z, log_det = self.flow.actnorm(squeeze(x) if self.squeezes else x)
        return z, log_det

    def kept(self, z: Tensor) -> Tensor:
        return z.chunk(2, 1)[0]

    def network(self, kept: Tensor, *conds: Tensor) -> Tensor:
        return self.flow.hidden(kept, *conds)

    def leave(self, z: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.leave(z, hidden)

    def kept_of(self, y: Tensor) -> Tensor:
        return y.chunk(2, 1)[1]

    def inverse(self, y: Tensor, hidden: Tensor) -> Tensor:
        x = self.flow.inverse(y, hidden)
        return unsqueeze(x) if self.squeezes else x


class _PriorStep(Step):
    """The second half of the channels leaves, normalised by the mean and the deviation of its prior."""

    def __init__(self, block: Block, name: str, conds: tuple[int, int]) -> None:
        assert block.prior is not None
        self.block, self.name, self.conds, self.leaving = block, name, conds, block.prior.end.scale.shape[1] // 2
        self.parts = [block.prior]

    def kept(self, z: Tensor) -> Tensor:
        return z.chunk(2, 1)[0]

    def network(self, kept: Tensor, *conds: Tensor) -> tuple[Tensor, Tensor]:
        return self.block.prior_of(kept, conds)

    def leave(self, z: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        staying, leaving = z.chunk(2, 1)
        mean, log_sd = hidden
        return torch.cat(((leaving - mean) * torch.exp(-log_sd), staying), 1), -_wide(log_sd).sum((1, 2))

    def kept_of(self, y: Tensor) -> Tensor:
        return y.chunk(2, 1)[1]

    def inverse(self, y: Tensor, hidden: tuple[Tensor, Tensor]) -> Tensor:
        normal, staying = y.chunk(2, 1)
        mean, log_sd = hidden
        return torch.cat((staying, mean + torch.exp(log_sd) * normal), 1)


class FloWaveNet(Vocoder):
    """The published `Flowavenet`, under its published state-dict keys.

    Each block squeezes time into channels by 2, for the audio and for its conditioning, and runs `n_flow` flows. The
    halves of the conditioning change places with those of the audio: a coupling sees the half that goes with its input.

    The published `reverse` starts with the conditioning's halves in their first order, wherever `forward` left them:
    with `n_block * n_flow` odd, it is not the inverse of `forward`. Here it is the same.

    Args:
        in_channel: channels of the audio (published: 1).
        cin_channel: mel bands of the conditioning (80).
        n_block: squeezes (8): lengths are multiples of 2**n_block.
        n_flow: flows in each block (6).
        n_layer: layers of each coupling network (2).
        affine: couplings scale and shift; else they only shift.
        pretrained: actnorm counts as initialised; else the first `forward` initialises it from its data. A state dict
            that is loaded counts as well.
        block_per_split: after every so many blocks, but not after the last, half of the channels leave (the published
            programs use 4, with the constructor's default none leave).
        filter_size: channels of every network (256, fixed in the published code).
        backprop: "autograd", "recompute" or "invert": what a training step keeps in memory; see
            `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: a size is less than 1, or `backprop` is none of these.
    """

    mel_form = "flowavenet"
    usual_sigma = 0.8
    hop_length = math.prod(UPSAMPLE_SCALES)

    def __init__(
        self,
        in_channel: int,
        cin_channel: int,
        n_block: int,
        n_flow: int,
        n_layer: int,
        affine: bool = True,
        pretrained: bool = False,
        block_per_split: int = 8,
        *,
        filter_size: int = 256,
        backprop: str = "autograd",
    ) -> None:
        super().__init__()
        self.backprop = backprop
        sizes = {
            "in_channel": in_channel,
            "cin_channel": cin_channel,
            "n_block": n_block,
            "n_flow": n_flow,
            "n_layer": n_layer,
            "block_per_split": block_per_split,
            "filter_size": filter_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}")
        self.config: dict[str, Any] = {**sizes, "affine": affine}
        self.in_channel, self.n_mel_channels = in_channel, cin_channel
        self.n_block, self.block_per_split = n_block, block_per_split
        self.blocks = nn.ModuleList()
        channels, cond_channels = in_channel, cin_channel
        for b in range(n_block):
            channels, cond_channels, split = 2 * channels, 2 * cond_channels, self._splits_after(b)
            self.blocks.append(Block(channels, cond_channels, n_flow, n_layer, filter_size, affine, pretrained, split))
            if split:
                channels //= 2
        self.upsample_conv = nn.ModuleList()
        for scale in UPSAMPLE_SCALES:
            self.upsample_conv += [UpsampleConv(scale), nn.LeakyReLU(0.4)]

    def _splits_after(self, b: int) -> bool:
        """Whether half of the channels leave (forward) or join (reverse) after block b."""
        return (b + 1) % self.block_per_split == 0 and b + 1 < self.n_block

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def _a_parameter(self) -> Tensor:
        return cast(Flow, self._blocks()[0].flows[0]).actnorm.loc

    def networks(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, Wavenet)]

    def upsample(self, c: Tensor) -> Tensor:
        """Return the mel `c` [B, cin_channel, F] at the rate of the audio, [B, cin_channel, F * hop_length]."""
        if c.shape[2] == 0:
            return c
        c = c[:, None]
        for layer in self.upsample_conv:
            c = layer(c)
        return c[:, 0]

    def _conditioning(self, x: Tensor, c: Tensor) -> Tensor:
        """Return `c`, a mel or one that is upsampled already, at the rate of `x`; raise if the two do not fit."""
        check_mel("c", c, self.n_mel_channels, self._a_parameter())
        upsampled = c if c.shape[2] == x.shape[2] else self.upsample(c)
        if upsampled.shape[2] != x.shape[2]:
            raise ValueError(
                f"`c` must be [B, {self.n_mel_channels}, F] with F * {self.hop_length} the length of the audio, "
                f"{x.shape[2]}; got {list(c.shape)}"
            )
        return upsampled

    def _check_audio(self, name: str, x: Tensor, c: Tensor) -> None:
        checks.check_floating("c", c)
        checks.check_shape(name, x, "[B, in_channel, T]", (c.shape[0], self.in_channel, None))
        checks.check_like(name, x, "c", c)
        if x.shape[2] % 2**self.n_block:
            raise ValueError(
                f"`{name}` must have a multiple of 2**n_block = {2**self.n_block} samples; got {list(x.shape)}"
            )

    def _halves(self, cond: Tensor, b: int, exchanged: bool) -> tuple[Tensor, Tensor]:
        """Return the halves of the conditioning [B, M, T] of block b, that of its first coupling first."""
        first, second = squeeze(cond, b + 1).chunk(2, 1)
        return (second, first) if exchanged else (first, second)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The training direction: audio to noise. The published loss is -(log_p + logdet).

        Args:
            x: audio [B, in_channel, T], T a multiple of 2**n_block.
            c: mel [B, cin_channel, T / hop_length].

        Returns:
            log_p, the log-density of the noise, and logdet, the log-determinant: each summed over all, divided by
            B * T.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        self._check_audio("x", x, c)
        cond = self._conditioning(x, c)
        samples = x.shape[0] * x.shape[2]
        steps: list[Step] = []
        conds: list[Tensor] = []  # the halves of each block's conditioning
        first = 0  # which of the two goes with the first half of the audio's channels
        for b, block in enumerate(self._blocks()):
            conds += squeeze(cond, b + 1).chunk(2, 1)
            for i, flow in enumerate(block.flows):
                steps.append(_FlowStep(cast(Flow, flow), f"flow {i} of block {b}", 2 * b + first, squeezes=i == 0))
                first = 1 - first
            if block.prior is not None:
                halves = (2 * b + first, 2 * b + 1 - first)
                steps.append(_PriorStep(block, f"the prior of block {b}", halves))
        parts, log_dets = self.run_steps(steps, x, conds)
        density = [_log_normal(part) for part in parts]
        change: list[Tensor] = []
        for step, log_det in zip(steps, log_dets, strict=True):  # a prior's scale is a part of its density
            (change if isinstance(step, _FlowStep) else density).append(log_det.sum())
        return torch.stack(density).sum() / samples, torch.stack(change).sum() / samples

    def reverse(self, z: Tensor, c: Tensor) -> Tensor:
        """The published synthesis: noise to audio.

        Args:
            z: noise [B, in_channel, T], T a multiple of 2**n_block, already times the temperature (published: 0.8).
            c: mel [B, cin_channel, T / hop_length], or one that is upsampled already, [B, cin_channel, T].

        Returns:
            audio [B, in_channel, T].

        Raises:
            ValueError: a shape, dtype or device does not fit.
            RuntimeError: actnorm was never initialised.
        """
        self._check_audio("z", z, c)
        cond = self._conditioning(z, c)
        x = z
        joining: list[Tensor] = []
        for b in range(self.n_block):
            x = squeeze(x)
            if self._splits_after(b):
                x, leaving = x.chunk(2, 1)
                joining.append(leaving)
        exchanged = False
        for b, block in reversed(list(enumerate(self._blocks()))):
            halves = self._halves(cond, b, exchanged)
            if block.prior is not None:
                mean, log_sd = block.prior_of(x, halves)
                x = torch.cat((x, mean + torch.exp(log_sd) * joining.pop()), 1)
            for flow in reversed(block.flows):
                halves = halves[::-1]
                exchanged = not exchanged
                x = cast(Flow, flow).reverse(x, halves[0])
            x = unsqueeze(x)
        return x

    @torch.no_grad()
    def infer(
        self,
        mel: Tensor,
        sigma: float = 0.8,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Synthesise audio, by the same call as with `WaveGlow`.

        Args:
            mel: [B, cin_channel, F], from the front end `fastflow.audio.FloWaveNetMel`.
            sigma: standard deviation of the noise, >= 0, the published temperature.
            z: the noise to use, [B, in_channel, F * hop_length], of unit variance (it is multiplied by `sigma`). None
                draws it, all at once.
            generator: source of the draw; None for PyTorch's default. Not together with `z`.

        Returns:
            audio [B, F * hop_length], or [B, in_channel, F * hop_length] where in_channel is not 1.

        Raises:
            ValueError: a shape, dtype or device does not fit, `mel` is not finite (says how many values and where the
                first is), or `sigma` is negative.
            RuntimeError: actnorm was never initialised.
        """
        check_mel("mel", mel, self.n_mel_channels, self._a_parameter())
        check_synthesis(mel, sigma)
        layout = "[B, in_channel, F * hop_length]"
        steps = mel.shape[2] * self.hop_length
        noise = unit_noise(z, generator, mel, layout, [self.in_channel], steps)
        return self.reverse(noise * sigma, mel).squeeze(1)

    def remove_weight_norm(self) -> None:
        """Replace weight norm by the plain weights it stands for, in place.

        Inference does not need it: folded weights are kept between calls anyway.
        """
        remove_weight_norm(self)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 or wider: sums run over all samples of the batch."""
    return x if x.dtype == torch.float64 else x.float()


def _log_normal(x: Tensor) -> Tensor:
    """Return the log-density of `x` under the standard normal distribution, summed."""
    return -0.5 * (_wide(x).square().sum() + x.numel() * _LOG_2PI)
