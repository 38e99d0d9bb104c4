"""FloWaveNet in plain PyTorch, from what is published of ksw0306/FloWaveNet: names, sizes, formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[nn.Module], nn.Module]


class Conv(nn.Module):
    def __init__(self, into: int, out: int, kernel: int, dilation: int, causal: bool, norm: Norm) -> None:
        super().__init__()
        self.causal = causal
        self.padding = dilation * (kernel - 1) if causal else dilation * (kernel - 1) // 2
        self.conv = norm(nn.Conv1d(into, out, kernel, dilation=dilation, padding=self.padding))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[:, :, : -self.padding] if self.causal and self.padding else y


class ResBlock(nn.Module):
    def __init__(self, width: int, kernel: int, dilation: int, cond: int, causal: bool, norm: Norm) -> None:
        super().__init__()
        self.causal, self.cin_channels, self.local_conditioning, self.skip = causal, cond, True, True
        self.filter_conv = Conv(width, width, kernel, dilation, causal, norm)
        self.gate_conv = Conv(width, width, kernel, dilation, causal, norm)
        self.res_conv, self.skip_conv = (norm(nn.Conv1d(width, width, 1)) for _ in range(2))
        self.filter_conv_c, self.gate_conv_c = (norm(nn.Conv1d(cond, width, 1)) for _ in range(2))

    def forward(self, tensor: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        filtered = self.filter_conv(tensor) + self.filter_conv_c(c)
        gated = self.gate_conv(tensor) + self.gate_conv_c(c)
        out = torch.tanh(filtered) * torch.sigmoid(gated)
        return (tensor + self.res_conv(out)) * math.sqrt(0.5), self.skip_conv(out)


class ZeroConv1d(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(into, out, 1)
        self.scale = nn.Parameter(torch.zeros(1, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.exp(self.scale * 3)


class Wavenet(nn.Module):
    def __init__(
        self, into: int, out: int, layers: int, width: int, cond: int, norm: Norm, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.skip = True
        self.front_conv = nn.Sequential(Conv(into, width, 3, 1, causal, norm), nn.ReLU())
        self.res_blocks = nn.ModuleList(ResBlock(width, 3, 2**i, cond, causal, norm) for i in range(layers))
        self.final_conv = nn.Sequential(
            nn.ReLU(), Conv(width, width, 1, 1, causal, norm), nn.ReLU(), ZeroConv1d(width, out)
        )

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.front_conv(x)
        skip: Tensor | int = 0
        for _, f in enumerate(self.res_blocks):
            h, s = f(h, c)
            skip += s
        return self.final_conv(skip)


class ActNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(1, channels, 1)), nn.Parameter(torch.ones(1, channels, 1))
        self.initialized, self.logdet = False, True

    def initialize(self, x: Tensor) -> None:
        with torch.no_grad():
            flat = x.transpose(0, 1).flatten(1)
            self.loc.copy_(-flat.mean(1)[None, :, None])
            self.scale.copy_(1 / (flat.std(1)[None, :, None] + 1e-6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        if not self.initialized:
            self.initialize(x)
            self.initialized = True
        log_det = x.shape[0] * x.shape[2] * torch.sum(torch.log(torch.abs(self.scale)))
        y = self.scale * (x + self.loc)
        return (y, log_det) if self.logdet else y

    def reverse(self, output: Tensor) -> Tensor:
        return output / self.scale - self.loc


class AffineCoupling(nn.Module):
    def __init__(self, channels: int, cond: int, width: int, layers: int, affine: bool, norm: Norm) -> None:
        super().__init__()
        self.affine = affine
        half = channels // 2
        self.net = Wavenet(half, channels if affine else half, layers, width, cond // 2, norm)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        in_a, in_b = x.chunk(2, 1)
        c_a, _ = c.chunk(2, 1)
        if self.affine:
            log_s, t = self.net(in_a, c_a).chunk(2, 1)
            out_b, log_det = (in_b - t) * torch.exp(-log_s), torch.sum(-log_s)
        else:
            out_b, log_det = in_b + self.net(in_a, c_a), None
        return torch.cat([in_a, out_b], 1), log_det

    def reverse(self, output: Tensor, c: Tensor | None = None) -> Tensor:
        out_a, out_b = output.chunk(2, 1)
        c_a, _ = c.chunk(2, 1)
        if self.affine:
            log_s, t = self.net(out_a, c_a).chunk(2, 1)
            in_b = out_b * torch.exp(log_s) + t
        else:
            in_b = out_b - self.net(out_a, c_a)
        return torch.cat([out_a, in_b], 1)


def change_order(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat(x.chunk(2, 1)[::-1], 1), torch.cat(c.chunk(2, 1)[::-1], 1)


class Flow(nn.Module):
    def __init__(self, channels: int, cond: int, width: int, layers: int, affine: bool, norm: Norm) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.coupling = AffineCoupling(channels, cond, width, layers, affine, norm)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, log_det = self.actnorm(x)
        x, det = self.coupling(x, c)
        if det is not None:
            log_det = log_det + det
        return *change_order(x, c), log_det

    def reverse(self, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        y, c = change_order(y, c)
        return self.actnorm.reverse(self.coupling.reverse(y, c)), c


class Flows(nn.Module):
    """The flows of one block, which the published model has eight of."""

    def __init__(self, channels: int, cond: int, width: int, layers: int, affine: bool, norm: Norm, *, count: int = 2):
        super().__init__()
        self.flows = nn.ModuleList(Flow(channels, cond, width, layers, affine, norm) for _ in range(count))

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | int = 0
        for flow in self.flows:
            x, c, log_det = flow(x, c)
            total = total + log_det
        return x, total

    def reverse(self, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        for flow in list(self.flows)[::-1]:
            y, c = flow.reverse(y, c)
        return y, c


def squeeze(x: Tensor) -> Tensor:
    return x.unflatten(2, (-1, 2)).permute(0, 1, 3, 2).flatten(1, 2)


def unsqueeze(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2)).permute(0, 1, 3, 2).flatten(2)


class Flowavenet(nn.Module):
    """The whole model as far as synthesis goes, without the split: nothing leaves on the way."""

    def __init__(self, norm: Norm, *, mels: int, blocks: int, flows: int, layers: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Flows(2 << b, 2 * mels << b, width, layers, True, norm, count=flows) for b in range(blocks)
        )
        self.upsample_conv = nn.ModuleList()
        for _ in range(2):
            conv = nn.ConvTranspose2d(1, 1, (3, 32), padding=(1, 8), stride=(1, 16))
            self.upsample_conv += [norm(conv), nn.LeakyReLU(0.4)]

    def reverse(self, z: Tensor, c: Tensor) -> Tensor:
        c = c[:, None]
        for f in self.upsample_conv:
            c = f(c)
        c = c[:, 0]
        for _ in self.blocks:
            z, c = squeeze(z), squeeze(c)
        for block in list(self.blocks)[::-1]:
            z, c = block.reverse(z, c)
            z, c = unsqueeze(z), unsqueeze(c)
        return z
