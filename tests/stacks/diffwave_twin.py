"""DiffWave and the network of DiffSinger in plain PyTorch, from what is published of them: names, calls, formulas."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, mels: int | None, width: int, dilation: int, steps: int) -> None:
        super().__init__()
        self.dilated_conv = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(steps, width)
        self.conditioner_projection = None if mels is None else nn.Conv1d(mels, 2 * width, 1)
        self.output_projection = nn.Conv1d(width, 2 * width, 1)

    def run(self, x: Tensor, step: Tensor, conditioner: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.dilated_conv(x + self.diffusion_projection(step)[:, :, None])
        if self.conditioner_projection is None:
            assert conditioner is None
        else:
            y = y + self.conditioner_projection(conditioner)
        gated, filtered = y.chunk(2, 1)
        residual, skip = self.output_projection(torch.sigmoid(gated) * torch.tanh(filtered)).chunk(2, 1)
        return (x + residual) / math.sqrt(2.0), skip


class DiffWave(nn.Module):
    """lmnt-com/diffwave, its spectrogram at the audio's rate already; `mels` None is the unconditional one."""

    class ResidualBlock(_Block):
        def forward(
            self, x: Tensor, diffusion_step: Tensor, conditioner: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            return self.run(x, diffusion_step, conditioner)

    def __init__(
        self, *, mels: int | None = 5, width: int = 8, layers: int = 4, cycle: int = 2, steps: int = 6
    ) -> None:
        super().__init__()
        self.input_projection = nn.Conv1d(1, width, 1)
        self.residual_layers = nn.ModuleList(
            self.ResidualBlock(mels, width, 2 ** (i % cycle), steps) for i in range(layers)
        )
        self.skip_projection, self.output_projection = nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)

    def forward(self, audio: Tensor, step: Tensor, spectrogram: Tensor | None = None) -> Tensor:
        x = F.relu(self.input_projection(audio[:, None]))
        skip = []
        for layer in self.residual_layers:
            x, connection = layer(x, step, spectrogram)
            skip.append(connection)
        x = torch.sum(torch.stack(skip), dim=0) / math.sqrt(len(self.residual_layers))
        return self.output_projection(F.relu(self.skip_projection(x)))


class WaveNet(nn.Module):
    """so-vits-svc's `diffusion.wavenet`, after DiffSinger: a layer's arguments in another order, all dilations 1."""

    class ResidualBlock(_Block):
        def forward(self, x: Tensor, conditioner: Tensor, diffusion_step: Tensor) -> tuple[Tensor, Tensor]:
            return self.run(x, diffusion_step, conditioner)

    def __init__(self, *, mels: int = 5, width: int = 8, layers: int = 3, hidden: int = 7) -> None:
        super().__init__()
        self.input_projection = nn.Conv1d(mels, width, 1)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.residual_layers = nn.ModuleList(self.ResidualBlock(hidden, width, 1, width) for _ in range(layers))
        self.skip_projection, self.output_projection = nn.Conv1d(width, width, 1), nn.Conv1d(width, mels, 1)

    def forward(self, spec: Tensor, diffusion_step: Tensor, cond: Tensor) -> Tensor:
        x = F.relu(self.input_projection(spec))
        step = self.mlp(diffusion_step)
        skip = []
        for layer in self.residual_layers:
            x, connection = layer(x, cond, step)
            skip.append(connection)
        x = torch.sum(torch.stack(skip), dim=0) / math.sqrt(len(self.residual_layers))
        return self.output_projection(F.relu(self.skip_projection(x)))
