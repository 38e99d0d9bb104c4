"""Parallel WaveGAN in plain PyTorch, from what is published of kan-bayashi's, Coqui's and ESPnet's: names, formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[nn.Module], nn.Module]


class _Block(nn.Module):
    """A layer; the three publications are subclasses."""

    residual_scale = math.sqrt(0.5)
    fused = False

    def __init__(
        self, width: int, gate: int, skip: int, aux: int, kernel: int, dilation: int, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        self.residual_channels, self.skip_channels = width, skip
        self.conv = nn.Conv1d(
            width, gate, kernel, padding=self._padding(kernel, dilation), dilation=dilation, bias=bias
        )
        self.conv1x1_aux = nn.Conv1d(aux, gate, 1, bias=False) if aux > 0 else None
        if self.fused:
            self.conv1x1_out = nn.Conv1d(gate // 2, width + skip, 1, bias=bias)
        else:
            self.conv1x1_out = nn.Conv1d(gate // 2, width, 1, bias=bias)
            self.conv1x1_skip = nn.Conv1d(gate // 2, skip, 1, bias=bias)
        self._drop(dropout)

    def _padding(self, kernel: int, dilation: int) -> int:
        return (kernel - 1) // 2 * dilation

    def _drop(self, dropout: float) -> None:
        self.dropout = dropout

    def _run(self, x: Tensor, c: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
        u = self.conv(F.dropout(x, p, self.training))[:, :, : x.shape[2]]
        if c is not None:
            u = u + self.conv1x1_aux(c)
        filtered, gated = u.chunk(2, 1)
        a = torch.tanh(filtered) * torch.sigmoid(gated)
        if self.fused:
            residual, skip = self.conv1x1_out(a).split([self.residual_channels, self.skip_channels], 1)
        else:
            residual, skip = self.conv1x1_out(a), self.conv1x1_skip(a)
        return (residual + x) * self.residual_scale, skip

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(x, c, self.dropout)


class WaveNetResidualBlock(_Block):
    """kan-bayashi's; causal pads on both sides and cuts."""

    use_causal_conv = False


class CausalBlock(WaveNetResidualBlock):
    use_causal_conv = True

    def _padding(self, kernel: int, dilation: int) -> int:
        return (kernel - 1) * dilation


class Coqui:
    class ResidualBlock(_Block):
        residual_scale = 0.5**2
        use_causal_conv = False


class ESPnet:
    class ResidualBlock(_Block):
        fused = True

        def _drop(self, dropout: float) -> None:
            self.dropout_rate = dropout
            self.scale_residual, self.conv1x1_glo = True, None

        def forward(
            self, x: Tensor, x_mask: Tensor | None = None, c: Tensor | None = None, g: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            residual, skip = self._run(x, c, self.dropout_rate)
            return (residual, skip) if x_mask is None else (residual * x_mask, skip * x_mask)


class ParallelWaveGANGenerator(nn.Module):
    """The loop over the layers, with the published names; upsampling is a repetition."""

    def __init__(
        self,
        block: type[_Block],
        norm: Norm,
        *,
        layers: int = 4,
        stacks: int = 2,
        width: int = 8,
        gate: int = 16,
        skip: int = 8,
        aux: int = 5,
        kernel: int = 3,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        per_stack = layers // stacks
        self.first_conv = nn.Conv1d(1, width, 1)
        self.conv_layers = nn.ModuleList(
            block(width, gate, skip, aux, kernel, 2 ** (i % per_stack), dropout, bias) for i in range(layers)
        )
        self.last_conv_layers = nn.ModuleList([nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, 1, 1)])
        for module in list(self.modules()):
            if isinstance(module, nn.Conv1d):
                norm(module)

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        x = self.first_conv(z)
        if c is not None:
            c = c.repeat_interleave(z.shape[2] // c.shape[2], 2)
        skips: Tensor | int = 0
        for f in self.conv_layers:
            x, h = f(x, c=c)
            skips += h
        skips *= math.sqrt(1.0 / len(self.conv_layers))
        x = skips
        for f in self.last_conv_layers:
            x = f(x)
        return x
