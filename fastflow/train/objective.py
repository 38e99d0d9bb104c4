"""What differs between the kinds of model: their data, where they start, their likelihood, their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

import fastflow.checkpoints
from fastflow.models import ImageFlow, SqueezeWave, Vocoder, WaveGlow, WaveGlowLoss
from fastflow.nn import AffineCoupling, CheckerboardCoupling

from .data import SegmentDataset
from .images import ImageDataset
from .settings import TrainingError
from .start import start_from_data

Kind = TypeVar("Kind")


class TrainingData(Protocol):
    """What the loop needs of a set of data; the objective of its model knows more.

    Attributes:
        unit: what is counted in a line of the log: "samples" or "images".
        units: how many of them one item of a batch has.
    """

    unit: str
    units: int

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, ...]:
        """The objective's arguments: items i, i + n, ... of batch `number`, `share` being (i, n).

        They depend on the arguments and a seed alone.
        """
        ...

    def options(self) -> dict[str, Any]:
        """What a resumed run should have in common with its beginning."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a run's facts say of its data."""
        ...


class Objective(nn.Module):
    """A model with its published loss: the tensors of a batch to a scalar."""

    model: Vocoder | ImageFlow

    def check(self, data: TrainingData) -> None:
        """Raise TrainingError for data that the model cannot learn from."""
        raise NotImplementedError

    def start(self, data: TrainingData) -> None:
        """Set the weights that begin from statistics of the data."""

    def save(self, path: Path, dtype: torch.dtype | None) -> None:
        """Write the model's weights; TrainingError where that fails."""
        raise NotImplementedError

    def networks(self) -> list[tuple[nn.Module, list[nn.Parameter]]]:
        """The networks, most of the model, each with those of its parameters that nothing but its own forward reads."""
        raise NotImplementedError


class VocoderObjective(Objective):
    """Nats per sample, up to a constant, of mel [B, M, F + 1] and audio [B, F * hop].

    Args:
        model: a `WaveGlow`, `SqueezeWave` or `FloWaveNet`.
        sigma: assumed standard deviation of the latent; FloWaveNet's is 1.
    """

    model: Vocoder

    def __init__(self, model: Vocoder, sigma: float) -> None:
        super().__init__()
        self.model = model
        self.loss = WaveGlowLoss(sigma)

    def check(self, data: TrainingData) -> None:
        model, data = self.model, _of_kind(SegmentDataset, data, self.model)
        if data.sampling_rate != model.sampling_rate:
            raise TrainingError(f"the model works at {model.sampling_rate} Hz, the dataset at {data.sampling_rate} Hz")
        if data.hop_length != model.hop_length:
            raise TrainingError(f"the model's hop is {model.hop_length} samples, the dataset's {data.hop_length}")

    def start(self, data: TrainingData) -> None:
        if isinstance(self.model, WaveGlow) and not isinstance(self.model, SqueezeWave):
            start_from_data(self.model, _of_kind(SegmentDataset, data, self.model))

    def save(self, path: Path, dtype: torch.dtype | None) -> None:
        try:
            fastflow.checkpoints.save(self.model, path, dtype=dtype, overwrite=True)
        except fastflow.checkpoints.CheckpointError as error:
            raise TrainingError(str(error)) from error

    def networks(self) -> list[tuple[nn.Module, list[nn.Parameter]]]:
        pairs = []
        for network in self.model.networks():
            end = set(network.end.parameters())  # type: ignore[union-attr]
            pairs.append((network, [p for p in network.parameters() if p not in end]))
        return pairs

    def forward(self, mel: Tensor, audio: Tensor) -> Tensor:
        if type(self.model) is not WaveGlow:  # whose upsampler covers the audio with a frame more
            mel = mel[:, :, : audio.shape[1] // self.model.hop_length]
        loss: Tensor
        if isinstance(self.model, WaveGlow):
            loss = self.loss(self.model((mel, audio)))
        else:
            log_p, log_det = self.model(audio[:, None], mel)
            loss = -(log_p + log_det)
        return loss


class ImageObjective(Objective):
    """Bits per dimension of dequantised images [B, C, H, W], a mean over the images.

    Args:
        model: a `Glow` or `RealNVP`.
        n_bits: of the images' values before they were dequantised.
    """

    model: ImageFlow

    def __init__(self, model: ImageFlow, n_bits: int) -> None:
        super().__init__()
        self.model = model
        self.n_bits = n_bits

    def check(self, data: TrainingData) -> None:
        model, data = self.model, _of_kind(ImageDataset, data, self.model)
        if data.shape[0] != model.in_channels:
            raise TrainingError(f"the model's images have {model.in_channels} channels, the dataset's {data.shape[0]}")
        try:
            model.z_shapes(*data.shape[1:])
        except ValueError as error:
            raise TrainingError(f"the dataset's images do not fit the model: {error}") from error
        if data.n_bits != self.n_bits:
            raise TrainingError(f"`n_bits` of all datasets must be the same; got {self.n_bits} and {data.n_bits}")

    def save(self, path: Path, dtype: torch.dtype | None) -> None:
        try:
            self.model.save(path, overwrite=True)
        except OSError as error:
            raise TrainingError(str(error)) from error

    def networks(self) -> list[tuple[nn.Module, list[nn.Parameter]]]:
        couplings = [m for m in self.modules() if isinstance(m, (AffineCoupling, CheckerboardCoupling))]
        return [(coupling.net, list(coupling.net.parameters())) for coupling in couplings]

    def forward(self, x: Tensor) -> Tensor:
        return self.model.bits_of_values(x, self.n_bits).mean()


def objective_of(model: Vocoder | ImageFlow, data: TrainingData, sigma: float, dtype: torch.dtype | None) -> Objective:
    """The objective that trains `model` on `data` and saves it in `dtype`; TrainingError where these do not fit."""
    objective: Objective
    if isinstance(model, ImageFlow):
        if sigma != 1:
            raise TrainingError(f"`sigma` must be 1 for a {type(model).__name__}; got {sigma}")
        if dtype not in (None, torch.float32):
            raise TrainingError(f"`dtype` must be None or torch.float32 for a {type(model).__name__}; got {dtype}")
        objective = ImageObjective(model, _of_kind(ImageDataset, data, model).n_bits)
    else:
        objective = VocoderObjective(model, sigma)
    objective.check(data)
    return objective


def _of_kind(kind: type[Kind], data: TrainingData, model: nn.Module) -> Kind:
    """`data`, which must be of the kind that the model learns from."""
    if not isinstance(data, kind):
        raise TrainingError(f"a {type(model).__name__} is trained on a {kind.__name__}; got a {type(data).__name__}")
    return data
