"""Options that several commands share, and the checks that turn a wrong one into one plain line."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fastflow.models import Vocoder

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
DTYPES = ("float32", "float16", "bfloat16")
LONGEST_REASON = 300  # characters of an error that is not fastflow's own


class _Text(click.types.StringParamType):
    """A string that says something: the empty one would pass as the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) or self.fail("must not be empty", param, ctx)


TEXT = _Text()

device = click.option(
    "--device", type=TEXT, default="cpu", show_default=True, help="PyTorch device: cpu, cuda, cuda:1, ..."
)
dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
backend = click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)


def printable(text: str) -> str:
    """One line that does nothing to a terminal, whatever names of files or messages are in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def warn(message: str) -> None:
    click.echo(printable(message), err=True)


class Failure(click.ClickException):
    """What went wrong: one line, or several where a reader lists what it found."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))


class UsageError(Failure):
    """Wrong usage; click's own class of this name puts the command's synopsis before it."""

    exit_code = 2


def require(condition: bool, message: str) -> None:
    """UsageError unless ``condition``."""
    if not condition:
        raise UsageError(printable(message))


def check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # CPU-only builds raise AssertionError
        raise UsageError(f"`--device {name}` cannot be used: {first_line(error)}") from error


def check_backend(name: str) -> None:
    import fastflow
    from fastflow.ops.registry import BackendError

    try:
        with fastflow.use_backend(name):
            pass
    except BackendError as error:
        raise UsageError(f"`--backend {name}`: {error}") from error


def check_name(path: Path) -> None:
    """Whether the file system takes this name: one that is too long would fail only when all work is done."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(describe(str(path), error)) from error


def check_writable(directory: Path) -> None:
    """Whether files can be put below ``directory``, which need not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    require(os.path.isdir(existing), f"cannot write to {directory}: {existing} is not a directory")
    require(os.access(existing, os.W_OK | os.X_OK), f"cannot write to {directory}: no permission in {existing}")


def check_output_file(name: str, path: Path, suffix: str, may_exist: bool, remedy: str) -> None:
    """Whether ``path``, called ``name`` in the usage line, can be written; ``remedy`` helps if it exists."""
    require(path.suffix == suffix, f"{name} must end in {suffix}; got {path}")
    check_name(path)
    require(not os.path.isdir(path), f"{name} {path} is a directory")
    require(may_exist or not os.path.lexists(path), f"{name} {path} exists ({remedy})")
    require(os.path.isdir(path.parent), f"{name} {path}: the directory {path.parent} does not exist")
    check_writable(path.parent)


def load_model(name: str, device: str, dtype: str) -> Vocoder:
    import torch

    import fastflow

    try:
        return fastflow.load(name, device=device, dtype=getattr(torch, dtype))
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(describe(name, error)) from error


def describe(name: str, error: BaseException) -> str:
    """``name: reason``, without saying the name twice.

    PyTorch's errors go on for lines that say nothing to a user; fastflow's own are given whole.
    """
    if isinstance(error, OSError) and error.strerror:
        elsewhere = error.filename is not None and str(error.filename) != name
        return f"{name}: {error.strerror}{f' ({error.filename})' if elsewhere else ''}"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return f"{name}: out of memory ({first_line(error)})"
    own = type(error).__module__.startswith("fastflow.")
    reason = str(error).replace(name, printable(name)) if own else first_line(error)
    name = printable(name)
    return reason if name in reason else f"{name}: {reason}"


def first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."
