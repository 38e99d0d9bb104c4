"""Training: segments of speech, and a loop that makes a vocoder of them."""

from __future__ import annotations

from .data import SegmentDataset
from .loop import train
from .settings import TrainingError
from .sources import DataError, find_audio, find_clips

__all__ = ["DataError", "SegmentDataset", "TrainingError", "find_audio", "find_clips", "train"]
