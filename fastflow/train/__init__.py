"""Training: segments of speech, and a loop that makes a vocoder of them."""

from __future__ import annotations

from .data import DataError, SegmentDataset, find_audio
from .loop import TrainingError, train

__all__ = ["DataError", "SegmentDataset", "TrainingError", "find_audio", "train"]
