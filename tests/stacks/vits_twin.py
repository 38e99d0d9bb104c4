"""The blocks of VITS in plain PyTorch, from what is published of jaywalnut310/vits: names, sizes, formulas."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def hooks(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hooks": hooks,
    "parametrizations": nn.utils.parametrizations.weight_norm,
    "plain": lambda conv: conv,
}
"""The three spellings of weight norm."""


class WN(nn.Module):
    def __init__(
        self,
        hidden_channels: int,
        kernel_size: int,
        dilation_rate: int,
        n_layers: int,
        gin_channels: int = 0,
        p_dropout: float = 0,
        norm: str = "hooks",
    ) -> None:
        super().__init__()
        self.hidden_channels, self.kernel_size, self.dilation_rate = hidden_channels, (kernel_size,), dilation_rate
        self.n_layers, self.gin_channels, self.p_dropout = n_layers, gin_channels, p_dropout
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        self.drop = nn.Dropout(p_dropout)
        if gin_channels:
            self.cond_layer = NORMS[norm](nn.Conv1d(gin_channels, 2 * hidden_channels * n_layers, 1))
        for i in range(n_layers):
            dilation = dilation_rate**i
            padding = dilation * (kernel_size - 1) // 2
            conv = nn.Conv1d(hidden_channels, 2 * hidden_channels, kernel_size, dilation=dilation, padding=padding)
            self.in_layers.append(NORMS[norm](conv))
            rows = hidden_channels * (1 if i == n_layers - 1 else 2)
            self.res_skip_layers.append(NORMS[norm](nn.Conv1d(hidden_channels, rows, 1)))

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, **kwargs: Any) -> Tensor:
        out, c = torch.zeros_like(x), self.hidden_channels
        cond = None if g is None else self.cond_layer(g)
        for i in range(self.n_layers):
            u = self.in_layers[i](x)
            if cond is not None:
                u = u + cond[:, 2 * c * i : 2 * c * (i + 1)]
            a = self.drop(torch.tanh(u[:, :c]) * torch.sigmoid(u[:, c:]))
            r = self.res_skip_layers[i](a)
            if i < self.n_layers - 1:
                x = (x + r[:, :c]) * x_mask
                out = out + r[:, c:]
            else:
                out = out + r
        return out * x_mask


class ResidualCouplingLayer(nn.Module):
    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        kernel_size: int,
        dilation_rate: int,
        n_layers: int,
        p_dropout: float = 0,
        gin_channels: int = 0,
        mean_only: bool = False,
        norm: str = "hooks",
    ) -> None:
        super().__init__()
        self.channels, self.half_channels, self.mean_only = channels, channels // 2, mean_only
        self.pre = nn.Conv1d(self.half_channels, hidden_channels, 1)
        self.enc = WN(hidden_channels, kernel_size, dilation_rate, n_layers, gin_channels, p_dropout, norm)
        self.post = nn.Conv1d(hidden_channels, self.half_channels * (2 - mean_only), 1)

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, reverse: bool = False) -> Any:
        x0, x1 = x.chunk(2, 1)
        stats = self.post(self.enc(self.pre(x0) * x_mask, x_mask, g=g)) * x_mask
        m, logs = (stats, torch.zeros_like(stats)) if self.mean_only else stats.chunk(2, 1)
        if reverse:
            return torch.cat([x0, (x1 - m) * torch.exp(-logs) * x_mask], 1)
        return torch.cat([x0, m + x1 * torch.exp(logs) * x_mask], 1), logs.sum([1, 2])


class Flip(nn.Module):
    def forward(self, x: Tensor, *args: Any, reverse: bool = False, **kwargs: Any) -> Any:
        x = torch.flip(x, [1])
        return x if reverse else (x, x.new_zeros(x.shape[0]))


class ResidualCouplingBlock(nn.Module):
    def __init__(
        self, channels: int, hidden: int, layers: int, flows: int, gin: int = 0, norm: str = "hooks", p: float = 0.0
    ) -> None:
        super().__init__()
        self.flows = nn.ModuleList()
        for _ in range(flows):
            layer = ResidualCouplingLayer(channels, hidden, 5, 1, layers, p, gin, mean_only=True, norm=norm)
            self.flows += [layer, Flip()]

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, reverse: bool = False) -> Tensor:
        for flow in reversed(self.flows) if reverse else self.flows:
            result = flow(x, x_mask, g=g, reverse=reverse)
            x = result if reverse else result[0]
        return x
