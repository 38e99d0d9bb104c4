"""NeMo: keys `waveglow.wavenet.k.*`, as a plain state dict or inside a `.nemo` archive (tar: configuration,
weights)."""

from __future__ import annotations

import gzip
import itertools
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from .errors import CheckpointError
from .formats import Described, tensors_in

_WAVENET = re.compile(r"(?:^|\.)wavenet\.(?=\d+\.)")
_MAX_MEMBERS = 1000  # of an archive; a .nemo archive has two and a few vocabularies
_MAX_RATIO = 20  # of a compressed archive; weights hardly compress at all
_TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, OSError, OverflowError, ValueError)


def matches(saved: Any) -> bool:
    return any(_WAVENET.search(key) for key in _state_dict(saved))


def describe(saved: Any) -> Described:
    tensors = {}
    for key, tensor in _state_dict(saved).items():
        # Left out: inverses that its first inference stores, and the mel front end beside the vocoder.
        if ".inv_conv." not in key and not key.startswith("audio_to_melspec_precessor."):
            tensors[_WAVENET.sub(lambda match: match[0].replace("wavenet", "WN"), key)] = tensor
    return Described("NeMo state dict", {}, tensors)


def _state_dict(saved: Any) -> dict[str, Any]:
    inner = saved.get("state_dict") if isinstance(saved, dict) else None
    return tensors_in(inner) or tensors_in(saved)


@contextmanager
def weights_of(archive: BinaryIO, size: int) -> Iterator[BinaryIO]:
    """The file of weights inside a `.nemo` archive. Nothing is unpacked under a name that the archive
    chooses."""
    try:
        with _uncompressed(archive, size) as plain, tarfile.open(fileobj=plain, mode="r:") as tar:
            for member in itertools.islice(tar, _MAX_MEMBERS):
                source = tar.extractfile(member) if member.isreg() else None
                if source is not None and member.name.removeprefix("./") == "model_weights.ckpt":
                    with source:
                        yield cast(BinaryIO, source)
                    return
    except CheckpointError:
        raise
    except _TAR_ERRORS as error:
        raise CheckpointError(f"it is an archive that is damaged or cut off ({error})") from error
    raise CheckpointError("it is a tar archive without model_weights.ckpt; a .nemo archive has one")


@contextmanager
def _uncompressed(archive: BinaryIO, size: int) -> Iterator[BinaryIO]:
    archive.seek(0)
    compressed = archive.read(2) == b"\x1f\x8b"
    archive.seek(0)
    if not compressed:
        yield archive
        return
    limit = _MAX_RATIO * size + (1 << 20)
    # A file on disk: seeking in the compressed one would unpack it again each time.
    with gzip.GzipFile(fileobj=archive) as source, tempfile.TemporaryFile() as copy:
        while block := source.read(1 << 20):
            copy.write(block)
            if copy.tell() > limit:
                raise CheckpointError(f"it unpacks to more than {_MAX_RATIO} times its size, as weights never do")
        copy.seek(0)
        yield cast(BinaryIO, copy)
