"""WaveGlow in plain PyTorch, from what is published of NVIDIA/waveglow, DeepLearningExamples and NeMo: names, formulas.

What differs between the publications: the names of the network's and the 1x1 convolution's arguments and methods, one
fused `cond_layer` or a list `cond_layers`, and the order of the halves in `glow_old`. Inference draws on the CPU here,
where the published `glow.py` asks for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[nn.Module], nn.Module]


def rotation(channels: int) -> nn.Conv1d:
    """The start of every 1x1 convolution: orthogonal, its determinant 1."""
    conv = nn.Conv1d(channels, channels, 1, bias=False)
    weight = torch.linalg.qr(torch.randn(channels, channels)).Q
    weight[:, 0] *= torch.linalg.det(weight).sign()
    conv.weight = nn.Parameter(weight[:, :, None])
    return conv


class _Network(nn.Module):
    """The parameters of all forms."""

    def __init__(self, half: int, cond: int, layers: int, width: int, norm: Norm, fused: bool) -> None:
        super().__init__()
        self.n_layers, self.n_channels = layers, width
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        self.start, self.end = norm(nn.Conv1d(half, width, 1)), nn.Conv1d(width, 2 * half, 1)
        if fused:
            self.cond_layer = norm(nn.Conv1d(cond, 2 * width * layers, 1))
        else:
            self.cond_layers = nn.ModuleList(norm(nn.Conv1d(cond, 2 * width, 1)) for _ in range(layers))
        for i in range(layers):
            self.in_layers.append(norm(nn.Conv1d(width, 2 * width, 3, dilation=2**i, padding=2**i)))
            rows = 2 * width if i < layers - 1 else width
            self.res_skip_layers.append(norm(nn.Conv1d(width, rows, 1)))

    def run(self, audio: Tensor, spect: Tensor) -> Tensor:
        h = self.start(audio)
        out = torch.zeros_like(h)
        fused = self.cond_layer(spect) if hasattr(self, "cond_layer") else None
        for i in range(self.n_layers):
            rows = slice(2 * self.n_channels * i, 2 * self.n_channels * (i + 1))
            cond = self.cond_layers[i](spect) if fused is None else fused[:, rows]
            filtered, gated = (self.in_layers[i](h) + cond).chunk(2, 1)
            r = self.res_skip_layers[i](torch.tanh(filtered) * torch.sigmoid(gated))
            if i < self.n_layers - 1:
                h = h + r[:, : self.n_channels]
                r = r[:, self.n_channels :]
            out = out + r
        return self.end(out)


class WN(_Network):
    """As in `glow` (fused), `glow_old` (not) and NeMo, where its name is WaveNet: one argument, a pair."""

    def forward(self, forward_input: tuple[Tensor, Tensor]) -> Tensor:
        audio, spect = forward_input
        return self.run(audio, spect)


class WaveNet(WN):
    """NeMo's name of the fused form."""


class Entry:
    """The classes of DeepLearningExamples and its torch.hub entry, under their names."""

    class WN(_Network):
        def forward(self, audio: Tensor, spect: Tensor) -> Tensor:
            return self.run(audio, spect)

    class Invertible1x1Conv(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = rotation(channels)

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            weight = self.conv.weight[:, :, 0]
            log_det = z.shape[0] * z.shape[2] * torch.logdet(weight.unsqueeze(0).float()).squeeze()
            return self.conv(z), log_det

        def infer(self, z: Tensor) -> Tensor:
            if not hasattr(self, "W_inverse"):
                self.W_inverse = self.conv.weight[:, :, 0].float().inverse().to(z.dtype)[..., None]
            return F.conv1d(z, self.W_inverse)


class Invertible1x1Conv(nn.Module):
    """As in `glow`; NeMo's keeps the inverse as a submodule `inv_conv` instead, made on its first use."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = rotation(channels)

    def forward(self, z: Tensor, reverse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        weight = self.conv.weight[:, :, 0]
        if reverse:
            if not hasattr(self, "W_inverse"):
                self.W_inverse = weight.float().inverse().to(z.dtype)[..., None]
            return F.conv1d(z, self.W_inverse)
        return self.conv(z), z.shape[0] * z.shape[2] * torch.slogdet(weight)[1]


class WaveGlow(nn.Module):
    """The parts of the model around them, as far as the parts' calls differ.

    Args:
        form: "glow", "glow_old", "entry" (DeepLearningExamples) or "nemo".
        norm: what makes weight norm of a convolution.
    """

    def __init__(
        self,
        form: str,
        norm: Norm,
        *,
        mels: int = 5,
        flows: int = 4,
        group: int = 8,
        early_every: int = 2,
        layers: int = 2,
        width: int = 8,
        hop: int = 16,
        window: int = 32,
    ) -> None:
        super().__init__()
        self.form, self.n_flows, self.n_group, self.n_early_every, self.n_early_size = (
            form,
            flows,
            group,
            early_every,
            2,
        )
        self.upsample = nn.ConvTranspose1d(mels, mels, window, stride=hop)
        self.convinv, networks = nn.ModuleList(), nn.ModuleList()
        setattr(self, "wavenet" if form == "nemo" else "WN", networks)
        network = {"glow": WN, "glow_old": WN, "entry": Entry.WN, "nemo": WaveNet}[form]
        convinv = Entry.Invertible1x1Conv if form == "entry" else Invertible1x1Conv
        channels = group
        for k in range(flows):
            channels -= self.n_early_size if self._early(k) else 0
            self.convinv.append(convinv(channels))
            fused = form in ("glow", "nemo")
            networks.append(network(channels // 2, mels * group, layers, width, norm, fused))
        self.remaining = channels

    def _early(self, k: int) -> bool:
        return k > 0 and k % self.n_early_every == 0

    def _spread(self, mel: Tensor) -> Tensor:
        spect = self.upsample(mel)[:, :, : self.upsample.stride[0] * mel.shape[2]]
        spect = spect.unfold(2, self.n_group, self.n_group).permute(0, 2, 1, 3)
        return spect.flatten(2).permute(0, 2, 1)

    def _coupling(self, k: int, x: Tensor, spect: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        networks = self.wavenet if self.form == "nemo" else self.WN
        swapped = self.form == "glow_old" and k % 2 == 1
        first, second = x.chunk(2, 1)
        kept, moved = (second, first) if swapped else (first, second)
        out = networks[k](kept, spect) if self.form == "entry" else networks[k]((kept, spect))
        shift, log_s = out.chunk(2, 1)
        return shift, log_s, moved, swapped

    @staticmethod
    def _join(x: Tensor, moved: Tensor, swapped: bool) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat((moved, second) if swapped else (first, moved), 1)

    def forward(self, forward_input: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        mel, audio = forward_input
        x = audio.unfold(1, self.n_group, self.n_group).permute(0, 2, 1)
        spect = self._spread(mel)[:, :, : x.shape[2]]
        out, log_s_list, log_det_list = [], [], []
        for k in range(self.n_flows):
            if self._early(k):
                out.append(x[:, : self.n_early_size])
                x = x[:, self.n_early_size :]
            x, log_det = self.convinv[k](x)
            log_det_list.append(log_det)
            shift, log_s, moved, swapped = self._coupling(k, x, spect)
            log_s_list.append(log_s)
            x = self._join(x, torch.exp(log_s) * moved + shift, swapped)
        return torch.cat((*out, x), 1), log_s_list, log_det_list

    def infer(self, mel: Tensor, sigma: float = 1.0) -> Tensor:
        spect = self._spread(mel)
        x = sigma * torch.randn(mel.shape[0], self.remaining, spect.shape[2], dtype=mel.dtype)
        for k in reversed(range(self.n_flows)):
            shift, log_s, moved, swapped = self._coupling(k, x, spect)
            x = self._join(x, (moved - shift) / torch.exp(log_s), swapped)
            x = self.convinv[k].infer(x) if self.form == "entry" else self.convinv[k](x, reverse=True)
            if self._early(k):
                x = torch.cat((sigma * torch.randn(mel.shape[0], 2, x.shape[2], dtype=mel.dtype), x), 1)
        return x.permute(0, 2, 1).reshape(mel.shape[0], -1).data
