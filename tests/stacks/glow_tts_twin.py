"""The decoder of Glow-TTS in plain PyTorch, from what is published of jaywalnut310/glow-tts: names, sizes, formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.stacks.vits_twin import NORMS


class WN(nn.Module):
    """As in VITS, but with dropout before the gate."""

    def __init__(
        self, in_channels: int, hidden_channels: int, kernel: int, rate: int, layers: int, gin: int, p: float, norm: str
    ) -> None:
        super().__init__()
        self.in_channels, self.hidden_channels, self.kernel_size = in_channels, hidden_channels, (kernel,)
        self.n_layers, self.gin_channels, self.p_dropout = layers, gin, p
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        self.drop = nn.Dropout(p)
        if gin:
            self.cond_layer = NORMS[norm](nn.Conv1d(gin, 2 * hidden_channels * layers, 1))
        for i in range(layers):
            padding = rate**i * (kernel - 1) // 2
            conv = nn.Conv1d(hidden_channels, 2 * hidden_channels, kernel, dilation=rate**i, padding=padding)
            self.in_layers.append(NORMS[norm](conv))
            rows = hidden_channels * (1 if i == layers - 1 else 2)
            self.res_skip_layers.append(NORMS[norm](nn.Conv1d(hidden_channels, rows, 1)))

    def forward(self, x: Tensor, x_mask: Any = None, g: Tensor | None = None, **kwargs: Any) -> Tensor:
        out, c = torch.zeros_like(x), self.hidden_channels
        cond = None if g is None else self.cond_layer(g)
        for i in range(self.n_layers):
            u = self.drop(self.in_layers[i](x))
            if cond is not None:
                u = u + cond[:, 2 * c * i : 2 * c * (i + 1)]
            r = self.res_skip_layers[i](torch.tanh(u[:, :c]) * torch.sigmoid(u[:, c:]))
            if i < self.n_layers - 1:
                x = (x + r[:, :c]) * x_mask
                out = out + r[:, c:]
            else:
                out = out + r
        return out * x_mask


class CouplingBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int,
        dilation_rate: int,
        n_layers: int,
        gin_channels: int = 0,
        p_dropout: float = 0.0,
        sigmoid_scale: bool = False,
        norm: str = "hooks",
    ) -> None:
        super().__init__()
        self.in_channels, self.sigmoid_scale = in_channels, sigmoid_scale
        self.start = NORMS[norm](nn.Conv1d(in_channels // 2, hidden_channels, 1))
        self.end = nn.Conv1d(hidden_channels, in_channels, 1)
        self.wn = WN(in_channels, hidden_channels, kernel_size, dilation_rate, n_layers, gin_channels, p_dropout, norm)

    def forward(
        self, x: Tensor, x_mask: Any = None, reverse: bool = False, g: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        x_mask = 1 if x_mask is None else x_mask
        x0, x1 = x.chunk(2, 1)
        m, s = self.end(self.wn(self.start(x0) * x_mask, x_mask, g)).chunk(2, 1)
        if self.sigmoid_scale:
            s = torch.log(1e-6 + torch.sigmoid(s + 2))
        if reverse:
            return torch.cat([x0, (x1 - m) * torch.exp(-s) * x_mask], 1), None
        return torch.cat([x0, (m + torch.exp(s) * x1) * x_mask], 1), torch.sum(s * x_mask, [1, 2])


class InvConvNear(nn.Module):
    def __init__(self, channels: int, n_split: int = 4, no_jacobian: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.channels, self.n_split, self.no_jacobian = channels, n_split, no_jacobian
        w = torch.linalg.qr(torch.randn(n_split, n_split))[0]
        w[:, 0] *= torch.det(w).sign()
        self.weight = nn.Parameter(w)

    def forward(self, x: Tensor, x_mask: Any = None, reverse: bool = False, **kwargs: Any) -> Any:
        b, c, t = x.shape
        n = self.n_split
        length = x.new_ones(b) * t if x_mask is None else x_mask.sum([1, 2])
        x = x.view(b, 2, c // n, n // 2, t).permute(0, 1, 3, 2, 4).reshape(b, n, c // n, t)
        log_det: Any = None
        if reverse:
            w = self.weight_inv if hasattr(self, "weight_inv") else torch.inverse(self.weight.float()).to(x)
        else:
            w = self.weight
            log_det = 0 if self.no_jacobian else torch.logdet(w) * (c / n) * length
        z = F.conv2d(x, w.view(n, n, 1, 1)).view(b, 2, n // 2, c // n, t).permute(0, 1, 3, 2, 4).reshape(b, c, t)
        return z * (1 if x_mask is None else x_mask), log_det

    def store_inverse(self) -> None:
        self.weight_inv = torch.inverse(self.weight.float()).to(self.weight.dtype)


class ActNorm(nn.Module):
    def __init__(self, channels: int, ddi: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.channels, self.initialized = channels, not ddi
        self.logs, self.bias = nn.Parameter(torch.zeros(1, channels, 1)), nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor, x_mask: Any = None, reverse: bool = False, **kwargs: Any) -> Any:
        x_mask = torch.ones_like(x[:, :1]) if x_mask is None else x_mask
        if not self.initialized:
            with torch.no_grad():
                steps = x_mask.sum([0, 2])
                mean = (x * x_mask).sum([0, 2]) / steps
                variance = (x * x * x_mask).sum([0, 2]) / steps - mean**2
                logs = -0.5 * torch.log(variance.clamp_min(1e-6))
                self.logs.copy_(logs.view(1, -1, 1))
                self.bias.copy_((-mean * torch.exp(logs)).view(1, -1, 1))
            self.initialized = True
        if reverse:
            return (x - self.bias) * torch.exp(-self.logs) * x_mask, None
        return (self.bias + torch.exp(self.logs) * x) * x_mask, self.logs.sum() * x_mask.sum([1, 2])


class FlowSpecDecoder(nn.Module):
    def __init__(
        self, channels: int, hidden: int, blocks: int, layers: int, *, gin: int = 0, norm: str = "hooks", **more: Any
    ) -> None:
        super().__init__()
        self.flows = nn.ModuleList()
        for _ in range(blocks):
            self.flows += [
                ActNorm(2 * channels),
                InvConvNear(2 * channels),
                CouplingBlock(2 * channels, hidden, 5, 1, layers, gin, norm=norm, **more),
            ]

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, reverse: bool = False) -> Any:
        b, c, t = x.shape
        x = x.view(b, c, t // 2, 2).permute(0, 3, 1, 2).reshape(b, 2 * c, t // 2)
        mask, total = x_mask[:, :, 1::2], x.new_zeros(b)
        x = x * mask
        for flow in reversed(self.flows) if reverse else self.flows:
            x, log_det = flow(x, mask, g=g, reverse=reverse)
            total = total if log_det is None else total + log_det
        x = x.view(b, 2, c, t // 2).permute(0, 2, 3, 1).reshape(b, c, t)
        return x, None if reverse else total
