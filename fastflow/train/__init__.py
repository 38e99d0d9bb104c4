"""Training: segments of speech or images, and a loop that makes a model of them."""

from __future__ import annotations

from .data import SegmentDataset
from .images import ImageDataset
from .loop import train
from .settings import TrainingError
from .sources import DataError, find_audio, find_clips

__all__ = ["DataError", "ImageDataset", "SegmentDataset", "TrainingError", "find_audio", "find_clips", "train"]
