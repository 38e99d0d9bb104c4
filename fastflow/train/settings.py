"""What a training run is told, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What matrix products are computed in, under torch.autocast; None for no autocast."""


class TrainingError(RuntimeError):
    """Training cannot start, go on, or be resumed; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What decides the weights besides the model and the data."""

    batch_size: int
    lr: float
    warmup: float
    sigma: float
    clip: float
    spike: float
    ema: float
    precision: str
    steps: int | None
    minutes: float | None

    def check(self) -> None:
        """Raise TrainingError for a value out of range."""
        if (self.steps is None) == (self.minutes is None):
            raise TrainingError(f"give `steps` or `minutes`, one of them; got {self.steps} and {self.minutes}")
        positive = {"steps": self.steps, "minutes": self.minutes}
        positive |= {name: getattr(self, name) for name in ("batch_size", "lr", "sigma", "clip", "spike")}
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TrainingError(f"`{name}` must be more than 0; got {value}")
        for name in ("warmup", "ema"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise TrainingError(f"`{name}` must be at least 0 and less than 1; got {value}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"`precision` must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")

    def done(self, progress: Progress) -> float:
        """The part of the budget that is used, 0 to 1."""
        if self.steps is not None:
            return progress.step / self.steps
        assert self.minutes is not None
        return progress.seconds / (60 * self.minutes)


@dataclass
class Progress:
    """How far training has come; part of the resumable state."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0  # of audio, or images
    skipped_steps: int = 0
    loss: float = math.nan  # smoothed, over the steps that were not skipped; nan before the first of them
    validation_loss: float | None = None  # of the averaged weights, when they were last saved
    saves: list[int] = field(default_factory=list)  # the steps whose saves are kept beside the output
