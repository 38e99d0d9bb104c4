"""Tensors as a file describes them: shape and place known, bytes read only when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastflow.nn.conv import unfold

from .errors import CheckpointError


class LazyTensor(Protocol):
    """What the parsers of the published formats need to know of a tensor before anything is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def load(self) -> Tensor: ...


@dataclass(eq=False)
class Storage:
    """`nbytes` bytes of a file. `read` fetches them as a uint8 tensor; what it returned is kept for the next
    view."""

    nbytes: int
    dtype: torch.dtype
    read: Callable[[], Tensor]
    _bytes: Tensor | None = field(default=None, repr=False)

    def bytes(self) -> Tensor:
        if self._bytes is None:
            self._bytes = self.read()
        return self._bytes


@dataclass(eq=False)
class StoredTensor:
    """A strided view of a storage, checked to lie inside it; offset and stride count elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise CheckpointError("it describes a tensor whose offset, sizes or strides are not whole numbers >= 0")
        if len(self.shape) != len(self.stride):
            raise CheckpointError(f"it describes a tensor with {len(self.shape)} sizes and {len(self.stride)} strides")
        if len(self.shape) > 64:  # as many as PyTorch's own views can have
            raise CheckpointError(f"it describes a tensor with {len(self.shape)} dimensions")
        capacity = self.storage.nbytes // self.dtype.itemsize
        last = self.offset
        if 0 not in self.shape:
            last += sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1
        if last > capacity:
            raise CheckpointError(
                f"it describes a tensor that reaches element {last} of a storage with {capacity} elements"
            )
        # Only a view that repeats elements is larger than its storage: no weight is, and a small file must
        # not be able to ask for unbounded memory.
        if math.prod(self.shape) > capacity:
            raise CheckpointError(
                f"it describes a tensor with {math.prod(self.shape)} elements in a storage with {capacity}"
            )

    def load(self) -> Tensor:
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = self.storage.bytes()
        whole = raw[: raw.numel() // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset)


@dataclass(eq=False)
class Rows:
    """Several tensors, one below the other along dimension 0."""

    parts: Sequence[LazyTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.parts[0].dtype
        for part in self.parts[1:]:
            dtype = torch.promote_types(dtype, part.dtype)
        return dtype

    def load(self) -> Tensor:
        return torch.cat([part.load() for part in self.parts])


@dataclass(eq=False)
class Normed:
    """One half, "v" or "g", of a plain weight split as weight norm does; see `fastflow.nn.conv.unfold`."""

    weight: LazyTensor
    part: str

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.weight.shape
        return shape if self.part == "v" else (shape[0], *[1] * (len(shape) - 1))

    @property
    def dtype(self) -> torch.dtype:
        # Norms rounded to half precision would change the weight.
        return torch.promote_types(self.weight.dtype, torch.float32)

    def load(self) -> Tensor:
        weight_v, weight_g = unfold(self.weight.load())
        return weight_v if self.part == "v" else weight_g
