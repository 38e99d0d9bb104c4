"""Files that `torch.save` wrote: the zip format, and the one before PyTorch 1.6. Never runs code in them.

Both hold pickles, evaluated by `pickles.py`, and beside them the raw bytes of every storage. Storages are
found and checked at once but read only when a tensor is: the optimizer state of a checkpoint costs nothing.
"""

from __future__ import annotations

import io
import sys
import zipfile
import zlib
from struct import error as StructError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError, quote
from .pickles import STORAGES, Global, evaluate
from .tensors import Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_CHUNK = 1 << 20
# Of the pickle inside a zip file. Those of published checkpoints are below 1 MiB.
_MAX_PICKLE = 256 << 20
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    StructError,
    ValueError,
)


def read(file: BinaryIO) -> Any:
    """What was saved in `file`, its tensors as `StoredTensor`, which can be loaded as long as `file` is
    open."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    starts_as_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    return _read_zip(file, size) if starts_as_zip else _read_legacy(file, size)


def _read_zip(file: BinaryIO, size: int) -> Any:
    try:
        archive = zipfile.ZipFile(file)
        entries = {entry.filename: entry for entry in archive.infolist()}
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"its zip directory is damaged or cut off ({error})") from error
    folders = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise CheckpointError(f"it is a zip file with {len(folders)} entries called data.pkl; torch.save writes one")
    folder = folders[0]
    if f"{folder}constants.pkl" in entries:
        raise CheckpointError("it is a TorchScript program, which is code; save its state_dict() instead")

    def contents(name: str, nbytes: int) -> bytearray:
        try:
            with archive.open(entries[folder + name]) as source:
                data = _fill(source, nbytes, name)
                source.read(1)  # reaching the end is what makes zipfile compare the checksum
                return data
        except CheckpointError:
            raise
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"its entry {quote(name)} is damaged or cut off ({error})") from error

    def small(name: str, limit: int) -> bytes:
        nbytes = _stored_size(entries, folder + name, size)
        if nbytes > limit:
            raise CheckpointError(f"its entry {quote(name)} has {nbytes} bytes; at most {limit} are read")
        return bytes(contents(name, nbytes))

    order = small("byteorder", 16) if f"{folder}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise CheckpointError(f"its byte order is {quote(order.decode('latin1'))}; expected little or big")
    storages: dict[str, Storage] = {}

    def load_persistent(identifier: Any) -> Storage:
        kind, storage_type, key, _location, numel = _fields(identifier, 5)
        dtype = _storage_dtype(kind, storage_type)
        nbytes = _byte_count(numel, dtype, size)
        if key not in storages:
            name = f"data/{key}"
            stored = _stored_size(entries, folder + name, size)
            if stored != nbytes:
                raise CheckpointError(f"its entry {quote(name)} has {stored} bytes; its pickle says {nbytes}")
            storages[key] = Storage(nbytes, dtype, lambda: _tensor(contents(name, nbytes), dtype, order.decode()))
        return _same(storages[key], key, nbytes, dtype)

    return evaluate(io.BytesIO(small("data.pkl", _MAX_PICKLE)), load_persistent)


def _stored_size(entries: dict[str, zipfile.ZipInfo], name: str, size: int) -> int:
    entry = entries.get(name)
    if entry is None:
        raise CheckpointError(f"its zip entry {quote(name)} is missing")
    # torch.save never compresses; refusing those that are rules out archives that unpack to far more than
    # they are.
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.file_size > size:
        raise CheckpointError(f"its zip entry {quote(name)} is compressed or has an impossible size")
    return entry.file_size


class _Bounded:
    """A file whose `read` never asks for more than is left: a pickle may claim strings of any length."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.readline = file.readline
        self.tell = file.tell

    def read(self, count: int, /) -> bytes:
        return self.file.read(min(count, max(0, self.size - self.file.tell())))


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Four pickles (magic number, protocol, machine, the object), one with the storages' keys, then the
    storages."""
    stream = _Bounded(file, size)

    def none_yet(_identifier: Any) -> Any:
        raise CheckpointError("its pickle is damaged (a storage before the object)")

    magic = evaluate(stream, none_yet)
    if magic != _MAGIC:
        raise CheckpointError("it is a pickle, but torch.save did not write it; expected the file of a torch.save")
    if evaluate(stream, none_yet) != _PROTOCOL:
        raise CheckpointError(f"its protocol version is unknown; expected {_PROTOCOL}")
    evaluate(stream, none_yet)  # the writer's byte order and integer sizes; storages are little-endian regardless

    positions: dict[str, int] = {}
    storages: dict[str, Storage] = {}

    def load_persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # a class together with its source text
        kind, storage_type, key, _location, numel, view = _fields(identifier, 6)
        dtype = _storage_dtype(kind, storage_type)
        nbytes = _byte_count(numel, dtype, size)
        if key not in storages:

            def fetch() -> Tensor:
                file.seek(positions[key])
                return _tensor(_fill(file, nbytes, key), dtype, "little")

            storages[key] = Storage(nbytes, dtype, fetch)
        storage = _same(storages[key], key, nbytes, dtype)
        return storage if view is None else _view(storage, view)

    result = evaluate(stream, load_persistent)
    keys = evaluate(stream, none_yet)
    names = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else None
    if names is None or len(names) != len(keys) or sorted(names) != sorted(storages):
        raise CheckpointError("its list of storages does not match the tensors in its pickle")
    for key in names:
        numel = int.from_bytes(file.read(8), "little", signed=True)
        positions[key] = file.tell()
        expected = storages[key].nbytes
        if numel * storages[key].dtype.itemsize != expected:
            raise CheckpointError(f"its storage {quote(key)} has {numel} elements, which is not what its pickle says")
        if positions[key] + expected > size:
            raise CheckpointError(
                f"it is cut off: storage {quote(key)} ends at byte {positions[key] + expected} of {size}"
            )
        file.seek(expected, io.SEEK_CUR)
    return result


def _view(storage: Storage, view: Any) -> Storage:
    # Before PyTorch 0.4 a storage could be a part of another; (key, offset, size) in elements.
    _key, offset, count = view if isinstance(view, tuple) and len(view) == 3 else (None, None, None)
    if type(offset) is not int or type(count) is not int or offset < 0 or count < 0:
        raise CheckpointError("its pickle is damaged (a view of a storage without offset and size)")
    start, nbytes = offset * storage.dtype.itemsize, count * storage.dtype.itemsize
    if start + nbytes > storage.nbytes:
        raise CheckpointError("it describes a view that lies outside its storage")
    return Storage(nbytes, storage.dtype, lambda: storage.bytes()[start : start + nbytes])


def _fields(identifier: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(identifier, tuple) or len(identifier) != count or not isinstance(identifier[2], str):
        raise CheckpointError("its pickle is damaged (a storage that is not described as torch.save does)")
    return identifier


def _storage_dtype(kind: Any, storage_type: Any) -> torch.dtype:
    if kind != "storage" or not isinstance(storage_type, Global) or storage_type.name not in STORAGES:
        raise CheckpointError("its pickle is damaged (a storage of unknown type)")
    return STORAGES[storage_type.name]


def _byte_count(numel: Any, dtype: torch.dtype, size: int) -> int:
    if type(numel) is not int or not 0 <= numel * dtype.itemsize <= size:
        raise CheckpointError(f"it is cut off or damaged: a storage of more than its {size} bytes")
    return numel * dtype.itemsize


def _same(storage: Storage, key: str, nbytes: int, dtype: torch.dtype) -> Storage:
    if storage.nbytes != nbytes or storage.dtype != dtype:
        raise CheckpointError(f"its pickle describes storage {quote(key)} in two ways")
    return storage


def _fill(source: Any, nbytes: int, name: str) -> bytearray:
    """The next `nbytes` bytes of `source`."""
    buffer = bytearray(nbytes)
    view = memoryview(buffer)
    filled = 0
    while filled < nbytes:
        count = source.readinto(view[filled : filled + _CHUNK])
        if not count:
            raise CheckpointError(f"it is cut off: {quote(name)} has {filled} of {nbytes} bytes")
        filled += count
    return buffer


def _tensor(buffer: bytearray, dtype: torch.dtype, order: str) -> Tensor:
    """The bytes as a uint8 tensor, elements of `dtype` turned round if `order` is not this machine's."""
    if not buffer:
        return torch.empty(0, dtype=torch.uint8)
    data = torch.frombuffer(buffer, dtype=torch.uint8)
    if order == sys.byteorder or dtype.itemsize == 1:
        return data
    return data.view(-1, dtype.itemsize).flip(1).reshape(-1)
