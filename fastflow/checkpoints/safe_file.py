"""fastflow's own file: safetensors with the model's configuration as JSON in the metadata.

Metadata: `fastflow_format` (a number, raised when a reader of the old form would go wrong), `model` (the name
of its class in `fastflow.models`) and `config` (the constructor's keyword arguments). A safetensors file without
them is read as a plain state dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastflow.files import write_whole

from .errors import CheckpointError, quote
from .formats import Described
from .tensors import LazyTensor

FORMAT_VERSION = 1

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(eq=False)
class _SafeTensor:
    """A tensor of an open safetensors file."""

    file: Any
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.key)
        return tensor


def matches(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` is a safetensors file: a length, then JSON."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size - 8


def describe(file: Any) -> Described:
    """`file` is what `safetensors.safe_open` gave; its tensors can be loaded as long as it is open."""
    tensors: dict[str, LazyTensor] = {}
    for key in file.keys():  # noqa: SIM118 (not a dict)
        part = file.get_slice(key)
        tensors[key] = _SafeTensor(file, key, tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.uint8))
    metadata = file.metadata() or {}
    if "fastflow_format" not in metadata:
        return Described("safetensors state dict", {}, tensors)
    version = metadata["fastflow_format"]
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"its format version is {quote(version)}; this fastflow reads version {FORMAT_VERSION}."
            " A newer fastflow may read it"
        )
    model = metadata.get("model")
    if not isinstance(model, str):
        raise CheckpointError("its metadata does not name a model")
    try:
        config = json.loads(metadata.get("config", ""))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its configuration is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError("its configuration is not a JSON object")
    return Described("fastflow safetensors", config, tensors, model)


def write(
    path: Path, model: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], *, overwrite: bool
) -> None:
    """Puts the file at `path`, whole or not at all. Raises CheckpointError naming the path and the reason."""
    from safetensors.torch import save

    metadata = {
        "format": "pt",  # what other readers of safetensors look for
        "fastflow_format": str(FORMAT_VERSION),
        "model": model,
        "config": json.dumps(dict(config)),
    }
    with write_whole(path, overwrite=overwrite, error=CheckpointError) as temporary:
        # not save_file, whose own temporary file would stay behind, under another name, where the process is killed
        temporary.write_bytes(save(dict(state_dict), metadata))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library's own changes from call to call."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
