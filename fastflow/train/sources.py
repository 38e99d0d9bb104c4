"""What a training set may be given as: files, folders, patterns, lists and manifests."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

AUDIO_SUFFIXES = (".wav", ".flac")
LIST_SUFFIXES = frozenset({".txt", ".csv"})
MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")


class DataError(ValueError):
    """Nothing to learn from, or settings that do not fit the audio."""


class Clip(NamedTuple):
    """A stretch of an audio file, in seconds; `duration` None is up to its end."""

    path: Path
    start: float = 0.0
    duration: float | None = None


def find_clips(sources: Iterable[str | os.PathLike[str]]) -> list[Clip]:
    """The stretches of audio that `sources` names, in order.

    A source is one of
      an audio file;
      a folder, searched recursively for .wav and .flac, sorted;
      a glob pattern of audio files;
      a list (.txt, .csv) with a file on each line, up to the first "|": NVIDIA's file lists, and LJ Speech's
        metadata.csv, whose names stand for wavs/NAME.wav;
      a lhotse manifest (.jsonl, .jsonl.gz) of recordings or cuts, with files of one channel as their sources.
    Relative names in a list or manifest count from its folder; where there is no such file, from the working directory,
    as NVIDIA's programs and lhotse have it. A source named twice gives its clips twice, so that they are drawn twice as
    often. Raises DataError for a source that gives none, and for a line that names no file.
    """
    found: list[Clip] = []
    for path, named in find_files(sources, AUDIO_SUFFIXES):
        if named and path.name.lower().endswith(MANIFEST_SUFFIXES):
            clips = list(_of_manifest(path))
        elif named and path.suffix.lower() in LIST_SUFFIXES:
            clips = list(_of_list(path))
        else:
            clips = [Clip(path)]
        if not clips:
            raise DataError(f"{path}: it names no audio file")
        found += clips
    return found


def find_files(sources: Iterable[str | os.PathLike[str]], suffixes: tuple[str, ...]) -> list[tuple[Path, bool]]:
    """The files that `sources` names, in order: files, folders, searched recursively for `suffixes`, glob patterns.

    With each, whether it is a source itself. Raises DataError for a source that gives none.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise DataError(f"`sources` must be a list of files, directories or patterns; got {os.fspath(sources)!r}")
    found: list[tuple[Path, bool]] = []
    for source in sources:
        path = Path(source)
        named = os.path.isfile(path)  # unlike Path.is_file, False for a name that is too long
        if named:
            files = [path]
        elif os.path.isdir(path):
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and os.path.isfile(p))
        else:
            files = sorted(Path(name) for name in glob.glob(os.fspath(source), recursive=True) if os.path.isfile(name))
        if not files:
            kinds = " or ".join((", ".join(suffixes[:-1]), suffixes[-1]))
            reason = f"no {kinds} file in it" if os.path.isdir(path) else "no such file, directory or match"
            raise DataError(f"{source}: {reason}")
        found += ((file, named) for file in files)
    if not found:
        raise DataError("`sources` must name at least one file, directory or pattern; got none")
    return found


def fingerprint(items: Iterable[tuple[object, ...]]) -> str:
    """A short text that differs where the items do, or their order: by it a resumed run knows other data."""
    lines = "\n".join(json.dumps(list(map(str, item))) for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def find_audio(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files of `find_clips`."""
    return [clip.path for clip in find_clips(sources)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file that are not blank."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read as text ({error})") from error


def _of_list(path: Path) -> Iterator[Clip]:
    for number, line in _lines(path):
        name = line.split("|", 1)[0].strip()
        yield Clip(_named_file(path, number, name, path.parent / "wavs" / f"{name}.wav"))


def _named_file(path: Path, number: int, name: str, *others: Path) -> Path:
    """The file that line `number` of `path` names; `others` are what the name may stand for too."""
    candidates = dict.fromkeys((path.parent / name, *others, Path(name)))  # an absolute name is one only
    for file in candidates:
        if os.path.isfile(file):
            return file
    raise DataError(f"{path}, line {number}: there is no file {' or '.join(map(str, candidates))}")


def _of_manifest(path: Path) -> Iterator[Clip]:
    for number, line in _lines(path):
        try:
            item = json.loads(line)
            recording = item.get("recording", item)
            (source,) = recording["sources"]
            kind, name = source["type"], os.fspath(source["source"])
            start, duration = float(item.get("start", 0.0)), float(item["duration"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number}: it is no recording or cut of lhotse with one source "
                f"({type(error).__name__}: {error})"
            ) from error
        if item.get("channel", 0) != 0 or len(recording.get("channel_ids", [0])) > 1:
            raise DataError(f"{path}, line {number}: it must be of the only channel of its recording")
        if kind != "file":
            raise DataError(f"{path}, line {number}: its source must be of type 'file'; got {kind!r}")
        yield Clip(_named_file(path, number, name), start, duration if _is_cut(item) else None)


def _is_cut(item: dict[str, Any]) -> bool:
    return "recording" in item
