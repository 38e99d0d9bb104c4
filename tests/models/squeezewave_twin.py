"""SqueezeWave in plain PyTorch, from what is published of tianrengao/SqueezeWave: names, sizes, formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normed(into: int, out: int) -> nn.Module:
    return nn.utils.weight_norm(nn.Conv1d(into, out, 1))


class Upsample1d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Invertible1x1Conv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)


class WN(nn.Module):
    def __init__(self, half: int, mels: int, layers: int, width: int) -> None:
        super().__init__()
        self.n_layers, self.n_channels = layers, width
        self.in_layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width),
                nn.Conv1d(width, width, 3, padding=1, groups=width),
                nn.Conv1d(width, 2 * width, 1),
            )
            for _ in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(normed(width, width) for _ in range(layers))
        self.upsample = Upsample1d()
        self.start, self.end = normed(half, width), nn.Conv1d(width, 2 * half, 1)
        self.cond_layer = normed(mels, 2 * width * layers)

    def forward(self, audio: Tensor, mel: Tensor) -> Tensor:
        h, cond = self.start(audio), self.cond_layer(mel)
        if h.shape[2] > cond.shape[2]:
            cond = self.upsample(cond)
        for i in range(self.n_layers):
            u = self.in_layers[i](h) + cond[:, 2 * self.n_channels * i : 2 * self.n_channels * (i + 1)]
            a = torch.tanh(u[:, : self.n_channels]) * torch.sigmoid(u[:, self.n_channels :])
            h = h + self.res_skip_layers[i](a)
        return self.end(h)


class SqueezeWave(nn.Module):
    def __init__(self, mels: int, flows: int, group: int, every: int, early: int, layers: int, width: int) -> None:
        super().__init__()
        self.n_flows, self.n_audio_channel, self.n_early_every, self.n_early_size = flows, group, every, early
        self.WN, self.convinv = nn.ModuleList(), nn.ModuleList()
        for k in range(flows):
            channels = group - early * (k // every)
            self.convinv.append(Invertible1x1Conv(channels))
            self.WN.append(WN(channels // 2, mels, layers, width))
        self.n_remaining_channels = channels

    def leaves(self, k: int) -> bool:
        return k > 0 and k % self.n_early_every == 0

    def forward(self, mel: Tensor, audio: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        x = audio.unfold(1, self.n_audio_channel, self.n_audio_channel).permute(0, 2, 1)
        out, log_s_list, log_det_w_list = [], [], []
        for k in range(self.n_flows):
            if self.leaves(k):
                out.append(x[:, : self.n_early_size])
                x = x[:, self.n_early_size :]
            w = self.convinv[k].conv.weight
            log_det_w_list.append(x.shape[0] * x.shape[2] * torch.linalg.slogdet(w[:, :, 0]).logabsdet)
            kept, moved = F.conv1d(x, w).chunk(2, 1)
            b, log_s = self.WN[k](kept, mel).chunk(2, 1)
            log_s_list.append(log_s)
            x = torch.cat((kept, torch.exp(log_s) * moved + b), 1)
        return torch.cat((*out, x), 1), log_s_list, log_det_w_list

    @torch.no_grad()
    def infer(self, mel: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
        steps = mel.shape[2] * (256 // self.n_audio_channel)

        def draw(channels: int) -> Tensor:
            return torch.randn(mel.shape[0], channels, steps, generator=generator, dtype=mel.dtype)

        x = draw(self.n_remaining_channels)  # not times sigma
        for k in reversed(range(self.n_flows)):
            kept, moved = x.chunk(2, 1)
            b, log_s = self.WN[k](kept, mel).chunk(2, 1)
            x = torch.cat((kept, (moved - b) / torch.exp(log_s)), 1)
            x = F.conv1d(x, torch.linalg.inv(self.convinv[k].conv.weight[:, :, 0])[:, :, None])
            if self.leaves(k):
                x = torch.cat((sigma * draw(self.n_early_size), x), 1)
        return x.permute(0, 2, 1).reshape(mel.shape[0], -1)


def filled(twin: SqueezeWave, seed: int = 0) -> SqueezeWave:
    """The twin with weights that make every part matter, and statistics as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    state = twin.state_dict()
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("convinv.weight") or "convinv" in key:
            value.copy_(torch.linalg.qr(noise[:, :, 0]).Q[:, :, None] * 1.1)
        elif key.endswith("running_var") or key.endswith("weight_g"):
            value.copy_(1 + 0.3 * torch.tanh(noise))
        elif key.endswith("num_batches_tracked"):
            value.fill_(100)
        elif key.endswith(".0.weight"):  # of batch normalisation
            value.copy_(1 + 0.2 * noise)
        else:
            value.copy_((0.1 if ".end." in key else 0.3) * noise)
    twin.load_state_dict(state)
    return twin.eval()
