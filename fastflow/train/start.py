"""Where training starts: weights that already turn audio into something near unit noise, scaled by the mel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastflow.models import WaveGlow
from fastflow.nn import InvertibleConv1x1

from .data import SegmentDataset


@torch.no_grad()
def start_from_data(model: WaveGlow, dataset: SegmentDataset) -> None:
    """Sets the weights that meet raw data, and the 1x1 weights, from the statistics of the data.

    - The upsampler repeats each mel frame over its hop, every band normalised by its mean and deviation: log-mels lie
      around -6, and learning to centre them takes the first minutes otherwise.
    - The first 1x1 weight is a discrete cosine transform of the group, each bin divided by its deviation over the data,
      even bins before odd. Channels are then frequencies, and the log scale that a coupling must learn for a bin is
      near a linear function of the log-mels. The other 1x1 weights swap the halves, so that the couplings transform
      even and odd bins in turn. All of them are learned from there.
    """
    mean, std = dataset.mel_statistics()
    upsample = model.upsample
    assert upsample.bias is not None
    kernel = torch.zeros(upsample.weight.shape[2])
    kernel[: upsample.stride[0]] = 1
    upsample.weight.copy_(torch.diag(1 / std)[:, :, None] * kernel)
    upsample.bias.copy_(-mean / std)

    basis = _interleave(_dct(model.n_group))
    deviation = dataset.deviation(basis)
    for k, convinv in enumerate(model.convinv):
        assert isinstance(convinv, InvertibleConv1x1)
        weight = basis / deviation[:, None] if k == 0 else _swap(convinv.channels)
        if torch.linalg.det(weight.double()) < 0:  # the published code takes the logarithm of the determinant itself
            weight[0] = -weight[0]
        convinv.conv.weight.copy_(weight[:, :, None])


def _dct(size: int) -> Tensor:
    """The orthonormal DCT-IV, [size, size]: rows are frequencies, from low to high."""
    steps = torch.arange(size, dtype=torch.float64) + 0.5
    return (math.sqrt(2 / size) * torch.cos(math.pi / size * steps[:, None] * steps)).float()


def _interleave(rows: Tensor) -> Tensor:
    """Even rows, then odd rows."""
    return torch.cat((rows[0::2], rows[1::2]))


def _swap(size: int) -> Tensor:
    """The permutation that exchanges the two halves."""
    return torch.eye(size).roll(size // 2, 0)
