"""WaveGlow's upsampler: mel frames to the conditioning of every step."""

from __future__ import annotations

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
        rows = self.out_channels * self.n_group
        if steps == 0:
            return mel.new_zeros(mel.shape[0], rows, 0)
        weight, bias = self._packed.get([p for p in (self.weight, self.bias) if p is not None], self._pack)
        hops = -(-steps // self.steps_per_frame)
        # A hop sees its own frame and those before it, the newest first, and zeros beyond both ends.
        seen = F.pad(mel, (self.frames - 1, hops - mel.shape[2])).unfold(2, self.frames, 1).flip(3)
        out = F.linear(seen.transpose(1, 2).flatten(2), weight, bias)  # [B, hops, steps_per_frame * rows]
        out = out.reshape(mel.shape[0], hops * self.steps_per_frame, rows)[:, :steps].transpose(1, 2)
        return out if channels_last else out.contiguous()
