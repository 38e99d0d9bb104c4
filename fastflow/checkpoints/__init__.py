"""Published checkpoints in and out. Code in a file is never executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import architectures, safe_file
from .errors import CheckpointError
from .recognise import Checkpoint, check_finite, read

if TYPE_CHECKING:
    from fastflow.models import Vocoder

__all__ = ["Checkpoint", "CheckpointError", "bundled", "convert", "is_bundled", "load", "read", "save"]

_ASSETS = Path(__file__).resolve().parent.parent / "assets"


def bundled() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.stem for path in _ASSETS.glob("*.safetensors"))


def is_bundled(path_or_name: str | os.PathLike[str]) -> bool:
    """Whether `load` would take this for the name of a bundled model; a file that is there goes before."""
    return not os.path.exists(path_or_name) and path_or_name in bundled()


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Vocoder:
    """A model with the weights of a checkpoint, in eval mode: a `WaveGlow`, `FloWaveNet` or `SqueezeWave`.

    Args:
        path_or_name: a file, or the name of a model that comes with the package (`bundled()`). Recognised by content:
            NVIDIA's pickled modules (glow.py and glow_old.py; the zip format and the one before PyTorch 1.6) and
            SqueezeWave's, DeepLearningExamples checkpoints, NeMo state dicts and `.nemo` archives, FloWaveNet's
            checkpoints, plain state dicts with or without weight norm, and safetensors. Sizes that a file does not
            state are inferred from its tensors. Two things no tensor of a WaveGlow shows: of the hop, a quarter of the
            window is assumed, and halves alternate only where the file names glow_old or has our own configuration
            inside.
        device: where the model goes.
        dtype: of its parameters; None means float32, whatever the file has.

    Raises:
        CheckpointError: naming the file and every reason: a global other than tensors, plain containers and the
            published classes (nothing is executed), damage, another architecture, tensors that are missing, unexpected
            or misshapen, weights that are not finite.
        ValueError: for a device or dtype that cannot be used.
    """
    target, kind = _device(device), _dtype(dtype or torch.float32)
    import fastflow.models

    path = _resolve(path_or_name)
    checkpoint = read(path)
    try:
        # On "meta" no initial weights are drawn: neither time nor memory nor the caller's random numbers go into them.
        with torch.device("meta"):
            model: Vocoder = getattr(fastflow.models, checkpoint.model)(**checkpoint.config)
    except ValueError as error:  # sizes that fit the tensors and no model, such as an even kernel
        raise CheckpointError(f"cannot load {path}: {error}") from error
    # Copies, since a reader's tensors may lie in memory that must not be written; each original goes when it is copied.
    state = checkpoint.state_dict
    state = {key: _cast(state.pop(key), kind) for key in list(state)}
    model.load_state_dict(state, strict=True, assign=True)
    _check_range(path, model.state_dict(), kind)
    return model.to(target).eval()


def save(
    model: Vocoder,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model as safetensors with its configuration inside, whole or not at all.

    `dtype` None keeps the parameters' own. An existing file is replaced only with `overwrite`. Raises
    CheckpointError if the file cannot be written or a weight is not finite in `dtype`, TypeError for any other model.
    """
    _write(Path(path), architectures.name_of(model), dict(model.config), model.state_dict(), dtype, overwrite)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Rewrites a checkpoint that `load` reads as safetensors. `dtype` None keeps that of the file.

    Raises CheckpointError as `load` and `save` do; then `dst` is as it was.
    """
    checkpoint = read(_resolve(src))
    _write(Path(dst), checkpoint.model, checkpoint.config, checkpoint.state_dict, dtype, overwrite)


def _write(
    path: Path,
    model: str,
    config: dict[str, object],
    state: dict[str, Tensor],
    dtype: torch.dtype | None,
    overwrite: bool,
) -> None:
    kind = None if dtype is None else _dtype(dtype)
    # Copies: safetensors refuses tensors that share memory, and two modules may share a parameter.
    tensors = {key: _cast(value.detach().cpu(), kind or value.dtype).contiguous() for key, value in state.items()}
    try:
        check_finite(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    safe_file.write(path, model, config, tensors, overwrite=overwrite)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a weight in `dtype`; of a counter as it is."""
    return value.to(dtype if value.is_floating_point() else value.dtype, copy=True)


def _check_range(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    if dtype in (torch.float32, torch.float64):
        return  # as wide as what the file was checked in
    try:
        check_finite(state)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {path} in {dtype}: {error}") from error


def _resolve(path_or_name: str | os.PathLike[str]) -> Path:
    path = Path(path_or_name)
    if os.path.exists(path):
        return path
    if is_bundled(path_or_name):
        return _ASSETS / f"{path_or_name}.safetensors"
    raise CheckpointError(
        f"there is no file {path}, and no bundled model of that name (bundled: {', '.join(bundled()) or 'none'})"
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a build without CUDA asserts
        raise ValueError(f"`device` {device!s} cannot be used: {str(error).splitlines()[0]}") from error
    return target


def _dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or dtype not in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ):
        raise ValueError(f"`dtype` must be float64, float32, float16 or bfloat16; got {dtype}")
    return dtype
