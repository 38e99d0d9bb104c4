"""Options that several commands share, and the checks that turn a wrong one into one plain line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fastflow.models import WaveGlow

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
DTYPES = ("float32", "float16", "bfloat16")

device = click.option("--device", default="cpu", show_default=True, help="PyTorch device: cpu, cuda, cuda:1, ...")
dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
backend = click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)


class UsageError(click.ClickException):
    """Wrong usage in one line; click's own class of this name puts the command's synopsis before it."""

    exit_code = 2


def require(condition: bool, message: str) -> None:
    """UsageError unless ``condition``."""
    if not condition:
        raise UsageError(message)


def check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # CPU-only builds raise AssertionError
        reason = str(error).splitlines()[0]
        raise UsageError(f"`--device {name}` cannot be used: {reason}") from error


def check_backend(name: str) -> None:
    import fastflow
    from fastflow.ops.registry import BackendError

    try:
        with fastflow.use_backend(name):
            pass
    except BackendError as error:
        raise UsageError(f"`--backend {name}`: {error}") from error


def check_writable(directory: Path) -> None:
    """Whether files can be put below ``directory``, which need not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    require(existing.is_dir(), f"cannot write to {directory}: {existing} is not a directory")
    require(os.access(existing, os.W_OK | os.X_OK), f"cannot write to {directory}: no permission in {existing}")


def check_output_file(name: str, path: Path, suffix: str, may_exist: bool, remedy: str) -> None:
    """Whether ``path``, called ``name`` in the usage line, can be written; ``remedy`` helps if it exists."""
    require(path.suffix == suffix, f"{name} must end in {suffix}; got {path}")
    require(not path.is_dir(), f"{name} {path} is a directory")
    require(may_exist or not os.path.lexists(path), f"{name} {path} exists ({remedy})")
    require(path.parent.is_dir(), f"{name} {path}: the directory {path.parent} does not exist")
    check_writable(path.parent)


def load_model(name: str, device: str, dtype: str) -> WaveGlow:
    import torch

    import fastflow

    try:
        return fastflow.load(name, device=device, dtype=getattr(torch, dtype))
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(describe(name, error)) from error


def describe(name: str, error: BaseException) -> str:
    """``name: reason``, without saying the name twice."""
    if isinstance(error, OSError) and error.strerror:
        elsewhere = error.filename is not None and str(error.filename) != name
        return f"{name}: {error.strerror}{f' ({error.filename})' if elsewhere else ''}"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return f"{name}: out of memory ({(str(error).splitlines() or ['MemoryError'])[0]})"
    reason = str(error).strip() or type(error).__name__
    return reason if name in reason else f"{name}: {reason}"
