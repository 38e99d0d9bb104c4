"""What every reader of a published format hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tensors import LazyTensor


@dataclass
class Described:
    """A checkpoint under the names and sizes that its file uses; nothing is checked against a model yet."""

    format: str
    known: Mapping[str, Any]  # of the model's keyword arguments, those that the file states
    tensors: dict[str, LazyTensor] = field(repr=False)
    model: str | None = None  # its name, where the file states it


def tensors_in(value: Any) -> dict[str, LazyTensor]:
    """The entries of a dict that are named tensors; empty for anything else."""
    from .tensors import StoredTensor

    if not isinstance(value, dict):
        return {}
    return {key: tensor for key, tensor in value.items() if isinstance(key, str) and isinstance(tensor, StoredTensor)}
