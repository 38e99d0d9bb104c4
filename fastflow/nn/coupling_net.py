"""The published networks of image couplings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroConv2d(nn.Module):
    """A 3x3 convolution times exp(3 * scale), one scale per channel. All of it starts at zero, and gives zero.

    Kingma & Dhariwal 2018, "Glow", section 3.3, and openai/glow, `conv2d_zeros`; parameters are named as in
    rosinality/glow-pytorch. Zeros pad the border.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(1, out_channels, 1, 1))
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * torch.exp(3 * self.scale)
        return out


class TanhScale(nn.Module):
    """Bounds the log scale that a network gives: gain * tanh(log scale), one learned gain per channel, from 1.

    Dinh et al. 2017, "Density Estimation using Real NVP", section 4.1; the shift passes.

    Args:
        net: returns [B, 2 * C, ...], the shift first and the log scale second.
        channels: C.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        shift, log_scale = self.net(x).chunk(2, 1)
        return torch.cat((shift, self.gain * torch.tanh(log_scale)), 1)


def coupling_net(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    """Return Glow's network: 3x3, ReLU, 1x1, ReLU and a `ZeroConv2d`; it starts as the zero function.

    Initial weights are normal with standard deviation 0.05 and biases zero, as in openai/glow.
    """
    net = nn.Sequential(
        nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden_channels, hidden_channels, 1),
        nn.ReLU(),
        ZeroConv2d(hidden_channels, out_channels),
    )
    for conv in net:
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.05)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
    return net
