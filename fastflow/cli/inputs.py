"""From the command line's IN arguments to a list of work: which file, which item in it, which output."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

MEL_SUFFIXES = (".npy", ".npz", ".pt", ".pth")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64")
OUTPUT_SUFFIXES = (".wav", ".flac")
# OUT with one of these is meant to be a file; with any other suffix ("v1.2") it is a directory.
FILE_SUFFIXES = (
    *AUDIO_SUFFIXES,
    *MEL_SUFFIXES,
    ".m4a",
    ".aac",
    ".wma",
    ".mp4",
    ".png",
    ".jpg",
    ".txt",
    ".json",
    ".csv",
)


class InputError(ValueError):
    """An input file that cannot be used; the message says why, without the path."""


@dataclass(frozen=True)
class Source:
    """One input file. ``folder`` is where it lies below the directory that was named ("." otherwise)."""

    path: Path
    folder: Path = Path(".")

    @property
    def is_mel(self) -> bool:
        return self.path.suffix.lower() in MEL_SUFFIXES


@dataclass(frozen=True)
class Item:
    """One output: item ``index`` of a mel batch, or all of an audio file or single mel (``index`` None)."""

    source: Source
    index: int | None
    output: Path

    @property
    def name(self) -> str:
        return str(self.source.path) if self.index is None else f"{self.source.path}[{self.index}]"


def find_sources(arguments: Iterable[str], exclude: Path | None = None) -> tuple[list[Source], list[tuple[str, str]]]:
    """Expand files, directories (recursively) and globs.

    Returns the files found, and ``(argument, reason)`` of every argument that gave none. A file that is named
    itself is taken whatever its suffix; in directories and globs known suffixes count. ``exclude`` is the
    output directory: what lies in it is not taken for input when a directory around it is.
    """
    found: dict[Path, Source] = {}
    missing: list[tuple[str, str]] = []
    for argument in arguments:
        path = Path(argument)
        if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
            sources = _walk(path, exclude)
            reason = "no audio or mel files in this directory"
        elif os.path.lexists(path):
            sources, reason = [Source(path)], ""
        elif glob.has_magic(argument):
            sources = _match(argument, exclude)
            reason = "no audio or mel files match"
        else:
            sources, reason = [], "no such file or directory"
        if not sources:
            missing.append((argument, reason))
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    return list(found.values()), missing


def _walk(directory: Path, exclude: Path | None) -> list[Source]:
    return [
        Source(path, path.parent.relative_to(directory))
        for path in sorted(directory.rglob("*"))
        if _known(path) and not _is_output(path, directory, exclude)
    ]


def _match(pattern: str, exclude: Path | None) -> list[Source]:
    parts = Path(pattern).parts
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    sources = []
    for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if _is_output(path, root, exclude):
            continue
        if os.path.isdir(path):
            sources += [] if "**" in parts else _walk(path, exclude)  # "**" lists the files below by itself
        elif _known(path):
            sources.append(Source(path))
    return sources


def _known(path: Path) -> bool:
    return path.suffix.lower() in MEL_SUFFIXES + AUDIO_SUFFIXES and os.path.isfile(path)


def _is_output(path: Path, root: Path, exclude: Path | None) -> bool:
    """Whether a search from ``root`` has come into the output, where an earlier run may have left its results."""
    if exclude is None or root.resolve().is_relative_to(exclude.resolve()):
        return False  # the search starts there: it was meant
    return path.resolve().is_relative_to(exclude.resolve())


def load_mel(path: Path) -> torch.Tensor:
    """Read a mel spectrogram: [n_mels, T] or [B, n_mels, T], floating point. Never runs pickled code.

    .npy: one array. .npz: one array, or the one called ``mel``. .pt: a tensor, or a dict with ``mel``.
    """
    import numpy as np
    import torch

    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    if empty:
        raise InputError("the file is empty")
    value: Any
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about the pickle protocol of old files
            if suffix == ".npy":
                value = np.load(path, allow_pickle=False)
            elif suffix == ".npz":
                value = _from_npz(path)
            else:
                value = _from_pt(path)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes numpy's and torch's readers raise almost anything
        refused = re.search(r"nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if refused or "Object arrays cannot be loaded" in str(error):
            what = refused[1] if refused else "pickled objects"
            raise InputError(f"refused: it holds {what}; only plain tensors and arrays are read") from error
        raise InputError(f"not a readable {suffix} file (damaged, or of another kind)") from error

    if isinstance(value, np.ndarray):
        if not np.issubdtype(value.dtype, np.floating):
            raise InputError(f"`mel` must be floating point; got {value.dtype}")
        # torch has no long double; native byte order because torch has no other
        wide = np.float64 if value.dtype.itemsize > 4 else np.float32
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=wide))
    if not isinstance(value, torch.Tensor):
        raise InputError(f"not a readable {suffix} file (it holds a {type(value).__name__})")
    if not value.is_floating_point():
        raise InputError(f"`mel` must be floating point; got {str(value.dtype).removeprefix('torch.')}")
    if value.ndim not in (2, 3):
        raise InputError(f"`mel` must be [80, T] or [B, 80, T]; got {list(value.shape)}")
    if value.ndim == 3 and value.shape[0] == 0:
        raise InputError(f"`mel` must hold at least one item; got {list(value.shape)}")
    return value


def _from_npz(path: Path) -> np.ndarray[Any, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        names: list[str] = archive.files
        if "mel" not in names and len(names) != 1:
            held = ", ".join(sorted(names)) or "none"
            raise InputError(f"must hold one array or one called `mel`; holds {held}")
        mel: np.ndarray[Any, Any] = archive["mel" if "mel" in names else names[0]]
        return mel


def _from_pt(path: Path) -> torch.Tensor:
    import torch

    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, dict):
        if "mel" not in value:
            keys = ", ".join(map(str, list(value)[:5])) or "none"
            raise InputError(f"must hold a tensor or a dict with `mel`; its keys: {keys}")
        value = value["mel"]
    if not isinstance(value, torch.Tensor):
        raise InputError(f"must hold a tensor or a dict with `mel`; got {type(value).__name__}")
    if value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided:
        raise InputError("`mel` must be a plain dense tensor; got a sparse, nested, quantized or meta tensor")
    return value.detach()


def count(source: Source) -> int | None:
    """How many items a file holds; None for one item under the file's name (audio, [80, T], [1, 80, T])."""
    if not source.is_mel:
        return None
    mel = load_mel(source.path)
    return mel.shape[0] if mel.ndim == 3 and mel.shape[0] > 1 else None


def names_a_file(output: Path, n_items: int) -> bool:
    """Whether OUT is the output file itself: one item in all, and OUT ends like a file."""
    return n_items == 1 and output.suffix.lower() in FILE_SUFFIXES and not os.path.isdir(output)


def output_paths(source: Source, n_items: int | None, directory: Path) -> list[Item]:
    """The outputs of one file in ``directory``: name.wav, or name_0.wav, name_1.wav, ... for a mel batch."""
    base = directory / source.folder
    if n_items is None:
        return [Item(source, None, base / f"{source.path.stem}.wav")]
    return [Item(source, i, base / f"{source.path.stem}_{i}.wav") for i in range(n_items)]


def collisions(items: Sequence[Item]) -> list[str]:
    """One line for every output that two or more inputs would be written to."""
    by_output: dict[Path, list[Item]] = {}
    for item in items:
        by_output.setdefault(item.output, []).append(item)
    return [
        f"{' and '.join(item.name for item in group)} would both be written to {output}"
        for output, group in by_output.items()
        if len(group) > 1
    ]
