"""The WaveNet and the coupling of ESPnet's VITS in plain PyTorch, from what is published of them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.stacks.vits_twin import NORMS


class Conv1d(nn.Conv1d):
    """A subclass that only starts from other values, as ESPnet's."""


class ResidualBlock(nn.Module):
    def __init__(
        self, kernel: int, residual: int, gate: int, skip: int, aux: int, glo: int, p: float, dilation: int, scale: bool
    ) -> None:
        super().__init__()
        self.dropout_rate, self.residual_channels, self.skip_channels, self.scale_residual = p, residual, skip, scale
        self.conv = Conv1d(residual, gate, kernel, padding=(kernel - 1) // 2 * dilation, dilation=dilation)
        self.conv1x1_aux = Conv1d(aux, gate, 1, bias=False) if aux > 0 else None
        self.conv1x1_glo = Conv1d(glo, gate, 1, bias=False) if glo > 0 else None
        self.conv1x1_out = Conv1d(gate // 2, residual + skip, 1)

    def forward(
        self, x: Tensor, x_mask: Tensor | None = None, c: Tensor | None = None, g: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        u = self.conv(F.dropout(x, self.dropout_rate, self.training))
        if c is not None:
            u = u + self.conv1x1_aux(c)
        if g is not None:
            u = u + self.conv1x1_glo(g)
        a, b = u.chunk(2, 1)
        r = self.conv1x1_out(torch.tanh(a) * torch.sigmoid(b))
        r = r if x_mask is None else r * x_mask
        h = r[:, : self.residual_channels] + x
        return h * math.sqrt(0.5) if self.scale_residual else h, r[:, self.residual_channels :]


class WaveNet(nn.Module):
    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        aux: int = -1,
        glo: int = -1,
        base: int = 1,
        p: float = 0.0,
        first: int = 0,
        scale: bool = False,
        skip_scale: bool = True,
        norm: str = "hooks",
    ) -> None:
        super().__init__()
        self.use_first_conv, self.use_last_conv, self.scale_skip_connect = first > 0, first > 0, skip_scale
        if first:
            self.first_conv = Conv1d(first, channels, 1)
        self.conv_layers = nn.ModuleList(
            ResidualBlock(5, channels, 2 * channels, channels, aux, glo, p, base**i, scale) for i in range(layers)
        )
        if first:
            self.last_conv = nn.Sequential(
                nn.ReLU(inplace=True), Conv1d(channels, channels, 1), nn.ReLU(inplace=True), Conv1d(channels, first, 1)
            )
        for part in list(self.modules()):
            if isinstance(part, nn.Conv1d):
                NORMS[norm](part)

    def forward(
        self, x: Tensor, x_mask: Tensor | None = None, c: Tensor | None = None, g: Tensor | None = None
    ) -> Tensor:
        x = self.first_conv(x) if self.use_first_conv else x
        skips: Any = 0.0
        for f in self.conv_layers:
            x, h = f(x, x_mask=x_mask, c=c, g=g)
            skips = skips + h
        x = skips * math.sqrt(1.0 / len(self.conv_layers)) if self.scale_skip_connect else skips
        return self.last_conv(x) if self.use_last_conv else x


class ResidualAffineCouplingLayer(nn.Module):
    def __init__(self, channels: int, hidden: int, layers: int, glo: int, mean_only: bool) -> None:
        super().__init__()
        self.half_channels, self.use_only_mean = channels // 2, mean_only
        self.input_conv = nn.Conv1d(channels // 2, hidden, 1)
        self.encoder = WaveNet(hidden, layers, glo=glo)
        self.proj = nn.Conv1d(hidden, channels // 2 * (2 - mean_only), 1)

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, inverse: bool = False) -> Any:
        x0, x1 = x.chunk(2, 1)
        stats = self.proj(self.encoder(self.input_conv(x0) * x_mask, x_mask, g=g)) * x_mask
        m, logs = (stats, torch.zeros_like(stats)) if self.use_only_mean else stats.chunk(2, 1)
        if inverse:
            return torch.cat([x0, (x1 - m) * torch.exp(-logs) * x_mask], 1)
        return torch.cat([x0, m + x1 * torch.exp(logs) * x_mask], 1), logs.sum([1, 2])
