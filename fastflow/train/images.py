"""Image files and arrays to random training batches, read when they are drawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastflow.models import dequantize

from .seeds import mix
from .sources import DataError, find_files, fingerprint

log = logging.getLogger("fastflow")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")
MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
DEEP_MODES = ("I", "F")  # of more than 8 bits; Pillow would clip them


class _Stack(NamedTuple):
    """The images of a file, which is read when one of them is drawn; an .npz is kept, unpacked."""

    path: Path
    shape: tuple[int, int, int]
    number: int = 1
    images: NDArray[np.uint8] | None = None  # [N, C, H, W]


class ImageDataset:
    """Random images of one size, as values from -0.5 to 0.5: what an image flow is trained on.

    Which images batch number n holds, and the noise that dequantises them, depend on `seed` and n alone, so training
    resumes anywhere without a saved random state. Every image is equally likely. Of image files only the headers are
    read at construction; one that turns out to be damaged is warned of once, and the next image takes its place.

    sources: files, directories (searched recursively) and glob patterns of
        image files, in whatever format Pillow reads (`pip install "fastflow[images]"`), 8 bits per value;
        .npy and .npz, the latter with one array inside: uint8 [N, C, H, W], or [N, H, W] for one channel.
    channels: C: 1 or 3, to which image files are converted. None: as the first image has it.
    n_bits: bits per value, of which each image keeps the upper ones, as in Kingma & Dhariwal 2018.
    Attributes: `shape` (C, H, W), `skipped` [(file, reason)]; `len()` is the number of images.

    Raises DataError if images differ in shape, a setting is out of range, or no file can be used (with every file's
    reason).
    """

    unit = "images"
    units = 1

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        *,
        channels: int | None = None,
        n_bits: int = 8,
        seed: int = 0,
    ) -> None:
        if channels is not None and channels < 1:
            raise DataError(f"`channels` must be at least 1; got {channels}")
        if not 1 <= n_bits <= 8:
            raise DataError(f"`n_bits` must be 1 to 8; got {n_bits}")
        if seed < 0:
            raise DataError(f"`seed` must be 0 or more; got {seed}")
        self.n_bits = n_bits
        self.seed = seed
        self.skipped: list[tuple[Path, str]] = []
        self._stacks: list[_Stack] = []
        for path, _ in find_files(sources, IMAGE_SUFFIXES + ARRAY_SUFFIXES):
            try:
                stack = _stack(path) if path.suffix.lower() in ARRAY_SUFFIXES else _open_image(path, channels)
            except _Unusable as error:
                self.skipped.append((path, str(error)))
                continue
            expected = self._stacks[0].shape if self._stacks else (channels or stack.shape[0], *stack.shape[1:])
            if stack.shape != expected:
                of = f" as in {self._stacks[0].path}" if self._stacks else ""
                raise DataError(f"{path}: its images must be [C, H, W] = {list(expected)}{of}; got {list(stack.shape)}")
            channels = stack.shape[0]
            self._stacks.append(stack)
        if not self._stacks:
            reasons = "\n  ".join(reason for _, reason in self.skipped)
            raise DataError(f"none of the {len(self.skipped)} files can be used:\n  {reasons}")
        self.shape = self._stacks[0].shape
        self._ends = torch.tensor([stack.number for stack in self._stacks]).cumsum(0)
        self._damaged: dict[Path, str] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor]:
        """Batch `number` of `size` images: x [size, C, H, W], float32; see `fastflow.models.dequantize`.

        `share` (i, n) gives every n-th image of it from the i-th on: the part of process i of n.

        Raises DataError if no image can be read.
        """
        seed = mix(self.seed, number)
        picks = torch.randint(len(self), (size,), generator=torch.Generator().manual_seed(seed)).tolist()
        first, step = share
        x = [
            dequantize(self._image(picks[i]), self.n_bits, generator=torch.Generator().manual_seed(mix(seed, i)))
            for i in range(first, size, step)
        ]
        return (torch.stack(x),)

    def options(self) -> dict[str, Any]:
        """What a resumed run should have in common with its beginning."""
        mark = fingerprint((stack.path.name, stack.number, stack.shape) for stack in self._stacks)
        return {"n_bits": self.n_bits, "seed": self.seed, "data": f"{len(self)} images ({mark})"}

    def facts(self) -> dict[str, Any]:
        """What a run's facts say of its data."""
        return {
            "sources": sorted({"/".join(stack.path.parts[-3:-1]) for stack in self._stacks}),
            "files": len(self._stacks),
            "skipped_files": len(self.skipped),
            "images": len(self),
            "shape": list(self.shape),
        }

    def summary(self) -> str:
        """How much there is of it, in words."""
        return f"{len(self)} images of {' x '.join(map(str, self.shape))}"

    def _image(self, index: int) -> Tensor:
        """Image `index` [C, H, W], uint8 with n_bits; or the first after it that can be read."""
        for i in range(len(self)):
            at = (index + i) % len(self)
            which = int(torch.searchsorted(self._ends, at, right=True))
            stack = self._stacks[which]
            try:
                return _read(stack, at - int(self._ends[which]) + stack.number) >> (8 - self.n_bits)
            except _Unusable as error:
                if stack.path not in self._damaged:
                    self._damaged[stack.path] = str(error)
                    log.warning("left out: %s", error)
        reasons = "\n  ".join(self._damaged.values())
        raise DataError(f"none of the {len(self)} images can be read any more:\n  {reasons}")


class _Unusable(Exception):
    """A file that no image can be had of; the message names it."""


def _stack(path: Path) -> _Stack:
    """An array's images, mapped for as long as this takes: a map that stays would hold the file open."""
    images = _open_array(path)
    kept = None if isinstance(images, np.memmap) else images
    return _Stack(path, images.shape[1:], len(images), kept)


def _read(stack: _Stack, index: int) -> Tensor:
    """Image `index` of a stack, [C, H, W], uint8."""
    if stack.path.suffix.lower() not in ARRAY_SUFFIXES:
        return _decode(stack)
    images = _open_array(stack.path) if stack.images is None else stack.images
    if images.shape != (stack.number, *stack.shape):
        raise _Unusable(f"{stack.path}: it has changed from {[stack.number, *stack.shape]} to {list(images.shape)}")
    return torch.from_numpy(np.array(images[index]))


def _open_array(path: Path) -> NDArray[np.uint8]:
    """A file's images [N, C, H, W]; an .npy is mapped."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                if len(loaded.files) != 1:
                    raise _Unusable(f"{path}: it must hold one array; got {', '.join(loaded.files) or 'none'}")
                loaded = loaded[loaded.files[0]]
    except _Unusable:
        raise
    except Exception as error:  # of many types: zipfile's, zlib's, its own
        raise _Unusable(f"{path}: it cannot be read as an array ({str(error) or type(error).__name__})") from error
    images: NDArray[np.uint8] = loaded[:, None] if loaded.ndim == 3 else loaded
    if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
        raise _Unusable(f"{path}: it must be uint8 [N, C, H, W] or [N, H, W]; got {loaded.dtype} {list(loaded.shape)}")
    return images


def _open_image(path: Path, channels: int | None) -> _Stack:
    """Read an image's header."""
    image = _pillow(path)
    with image:
        if image.mode.startswith(DEEP_MODES):
            raise _Unusable(f"{path}: it must have 8 bits per value; got Pillow's mode {image.mode}")
        grey = image.mode in ("1", "L", "LA")
        count = (1 if grey else 3) if channels is None else channels
        if count not in MODES:
            raise _Unusable(f"{path}: an image file can be had with 1 or 3 channels; got {count}")
        return _Stack(path, (count, image.height, image.width))


def _decode(stack: _Stack) -> Tensor:
    """The image of a file, [C, H, W], uint8."""
    with _pillow(stack.path) as image:
        try:
            pixels = np.array(image.convert(MODES[stack.shape[0]]))
        except Exception as error:  # Pillow raises many types, none of them documented
            raise _Unusable(f"{stack.path}: it cannot be decoded ({error})") from error
    found = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    if found.shape != stack.shape:
        raise _Unusable(f"{stack.path}: it has changed from {list(stack.shape)} to {list(found.shape)}")
    return found


def _pillow(path: Path) -> Any:
    """The file as Pillow's image, not decoded yet."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"image files need the package Pillow (pip install 'fastflow[images]'): {error}") from error
    try:
        return Image.open(path)
    except Exception as error:  # as above
        raise _Unusable(f"{path}: it cannot be read as an image ({error})") from error
