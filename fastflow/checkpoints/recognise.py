"""Which format a file has, by its content and never by its name; then its configuration and its weights."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from . import architectures, dle, nemo, nvidia, plain, reader, safe_file
from .errors import CheckpointError, RefusedGlobalError, quote
from .formats import Described


@dataclass
class Checkpoint:
    """A checkpoint of any format, as `load_state_dict` of the class `model`, made of `config`, takes it."""

    format: str
    model: str  # the name of a class in `fastflow.models`
    config: dict[str, Any]
    state_dict: dict[str, Tensor] = field(repr=False)


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint of any published format. Weights keep the dtype that the file has.

    Raises CheckpointError, with every reason at once, for a file that cannot be read, is refused, is damaged,
    is of no known model or has weights that are not finite.
    """
    try:
        with _open(path) as (size, described):
            return _checked(size, described)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot load {path}: {error.strerror or error}") from error


@contextmanager
def _open(path: Path) -> Iterator[tuple[int, Described]]:
    """The size of the file that holds the weights, and what that file says."""
    if os.path.isdir(path):
        raise CheckpointError("it is a directory")
    if not os.path.exists(path):
        raise CheckpointError("there is no such file")
    if not os.path.isfile(path):  # reading a pipe or a device could wait for ever
        raise CheckpointError("it is not a regular file")
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        if not head:
            raise CheckpointError("it is empty")
        if safe_file.matches(head, size):
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="pt") as opened:
                    yield size, safe_file.describe(opened)
            except SafetensorError as error:
                raise CheckpointError(f"it is a safetensors file that is damaged or cut off ({error})") from error
        elif head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b":
            with nemo.weights_of(file, size) as weights:
                yield weights.seek(0, io.SEEK_END), _described(reader.read(weights))
        else:
            yield size, _described(_read_pickled(file, head))


def _read_pickled(file: BinaryIO, head: bytes) -> Any:
    try:
        return reader.read(file)
    except CheckpointError as error:
        # Every pickle that torch.save writes starts with its protocol's number; before anything else, a text
        # file should be told what it is not.
        if isinstance(error, RefusedGlobalError) or head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            raise
        raise CheckpointError(
            f"it is no checkpoint: it starts with {head[:16]!r};"
            " expected a file of torch.save, a .nemo archive or safetensors"
        ) from error


def _described(saved: Any) -> Described:
    if nvidia.matches(saved):
        return nvidia.describe(saved)
    if dle.matches(saved):
        return dle.describe(saved)
    if nemo.matches(saved):
        return nemo.describe(saved)
    return plain.describe(saved)


def _checked(size: int, described: Described) -> Checkpoint:
    architecture = architectures.of(described.tensors)
    if architecture is None:
        some = [f"{quote(key)} {list(tensor.shape)}" for key, tensor in list(described.tensors.items())[:5]]
        names = [f"{known.keys}, as {known.name}'s are" for known in reversed(architectures.ARCHITECTURES)]
        raise CheckpointError(
            f"it is a {described.format} of another architecture: none of its {len(described.tensors)}"
            f" tensors is called {', or '.join(names)}. It starts with {', '.join(some) or 'nothing'}"
        )
    if described.model not in (None, architecture.name):
        raise CheckpointError(
            f"it holds a model called {quote(described.model)}; its tensors are those of {quote(architecture.name)}"
        )
    tensors = architecture.canonical(described.tensors)
    try:
        config = architecture.complete(described.known, tensors)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError) as error:  # sizes that make no model, or one beyond all memory
        raise CheckpointError(str(error)) from error
    needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in described.tensors.values())
    if needed > size:
        raise CheckpointError(f"its tensors overlap: together they have {needed} bytes, the file has {size}")
    state_dict = {key: tensor.load() for key, tensor in tensors.items()}
    check_finite(state_dict)
    _check_directions(state_dict)
    return Checkpoint(described.format, architecture.name, config, state_dict)


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming every tensor with NaN or infinite values: all sound would be NaN."""
    problems = []
    for key, tensor in state_dict.items():
        if math.isfinite(tensor.sum()):
            continue  # much faster than looking at each value, and no sum hides a NaN or an infinity
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:  # otherwise finite values whose sum overflowed
            problems.append(f"  {quote(key)} {list(tensor.shape)}: {bad} of {tensor.numel()} in {tensor.dtype}")
    if problems:
        raise CheckpointError("it has weights that are NaN or infinite:\n" + "\n".join(problems))


def _check_directions(state_dict: Mapping[str, Tensor]) -> None:
    """Weight norm divides by the norm of each channel of v: where that is zero, the weight is NaN."""
    problems = []
    for key, tensor in state_dict.items():
        if key.endswith(".weight_v") and tensor.numel():
            zeros = tensor.shape[0] - int(tensor.flatten(1).any(1).sum())
            if zeros:
                problems.append(f"  {quote(key)} {list(tensor.shape)}: {zeros} channels")
    if problems:
        raise CheckpointError("weight norm is not defined for its channels of zeros:\n" + "\n".join(problems))
