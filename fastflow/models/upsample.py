"""WaveGlow's upsampler: mel frames to the conditioning of every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.packing import Packed, PackingModule


class Upsample(PackingModule[tuple[Tensor, Tensor]], nn.ConvTranspose1d):
    """A transposed convolution whose outputs are folded, n_group neighbours at a time, into channels.

    `forward` is the published `ConvTranspose1d`; `grouped` is it and the folding in one matrix product. Each output
    sample is a weighted sum over the frames in whose windows it lies: `win_length / hop_length` of them, rounded up.
    With these frames in a row, frames x weight gives all samples of a hop, in the order of the weight's rows.

    Args:
        channels: mel bands, in and out.
        win_length: the kernel, in samples.
        hop_length: the stride, in samples, a multiple of `n_group`.
        n_group: samples folded into one step.
    """

    def __init__(self, channels: int, win_length: int, hop_length: int, n_group: int) -> None:
        nn.ConvTranspose1d.__init__(self, channels, channels, win_length, stride=hop_length)
        self._packed = Packed()
        self.hop_length, self.n_group = hop_length, n_group
        self.frames = -(-win_length // hop_length)  # that one sample depends on
        self.steps_per_frame = hop_length // n_group

    def _pack(self) -> tuple[Tensor, Tensor]:
        """Return the weight [hop * channels, channels * frames], its rows by step, channel and sample; and the bias."""
        assert self.bias is not None
        steps, group = self.steps_per_frame, self.n_group
        # a window that ends inside a hop: zeros up to the hop's end
        weight = F.pad(self.weight, (0, self.frames * self.hop_length - self.kernel_size[0]))
        weight = weight.reshape(*weight.shape[:2], self.frames, steps, group).permute(3, 1, 4, 0, 2)
        return weight.flatten(0, 2).flatten(1), self.bias.repeat_interleave(group).repeat(steps)

    def grouped(self, mel: Tensor, steps: int, *, channels_last: bool) -> Tensor:
        """Return the first steps of the upsampled `mel` [B, channels, F], as [B, channels * n_group, steps].

        Channels are in the published order: mel band, then sample. With `channels_last`, those of a step lie beside
        each other in memory, as the kernels on GPUs read them, else the steps of a channel do.
        """
        if steps == 0:
            return mel.new_zeros(mel.shape[0], self.rows, 0)
        weight, bias = self._folded()
        hops = -(-steps // self.steps_per_frame)
        out = F.linear(self._seen(mel, hops), weight, bias)  # [B, hops, steps_per_frame * rows]
        out = out.reshape(mel.shape[0], hops * self.steps_per_frame, self.rows)[:, :steps].transpose(1, 2)
        return out if channels_last else out.contiguous()

    def _folded(self) -> tuple[Tensor, Tensor]:
        return self._packed.get(self.stored(), self._pack)

    def stored(self) -> list[Tensor]:
        """Return the parameters."""
        return [p for p in (self.weight, self.bias) if p is not None]

    def _seen(self, mel: Tensor, hops: int) -> Tensor:
        """Return what each hop depends on, [B, hops, channels * frames]: of each band the newest frame first."""
        # a hop sees its own frame and those before it, and zeros beyond both ends
        seen = F.pad(mel, (self.frames - 1, hops - mel.shape[2])).unfold(2, self.frames, 1).flip(3)
        return seen.transpose(1, 2).flatten(2)

    def windows(self, mel: Tensor, *, channels_last: bool) -> Tensor:
        """Return the frames that each frame's steps depend on: [B, channels * frames, F] for `mel` [B, channels, F].

        They condition through composed weights; `channels_last` is as in `grouped`.
        """
        if mel.shape[2] == 0:
            return mel.new_zeros(mel.shape[0], self.in_channels * self.frames, 0)
        out = self._seen(mel, mel.shape[2]).transpose(1, 2)
        return out if channels_last else out.contiguous()

    @property
    def rows(self) -> int:
        """Channels of a step."""
        return self.out_channels * self.n_group

    @torch.no_grad()
    def compose(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], out: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compose conditioning weights with this layer: exact but for rounding, since both are linear.

        Args:
            weights: of any number of layers, [2G, channels * n_group] each.
            biases: of these layers, [2G] each.
            out: where to write the results, or None for new memory.

        Returns:
            Weights [steps_per_frame, 2G, channels * frames] for what `windows` returns, one for each step of a frame,
            and biases [2G], in the dtype of `weights`. They are computed in float32 or wider.
        """
        folded, bias = self._folded()
        wide = torch.promote_types(folded.dtype, torch.float32)
        folded = folded.to(wide).view(self.steps_per_frame, self.rows, -1)
        bias = bias[: self.rows].to(wide)  # the same for all steps
        if out is None:
            out = [w.new_empty(self.steps_per_frame, w.shape[0], folded.shape[2]) for w in weights]
        added: list[Tensor] = []
        for narrow, own, composed in zip(weights, biases, out, strict=True):
            weight = narrow.to(wide)
            for upsampling, phase in zip(folded, composed, strict=True):
                phase.copy_(weight @ upsampling)
            added.append((weight @ bias + own).to(own.dtype))
        return list(out), added
