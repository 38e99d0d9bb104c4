"""``fastflow verify``: a model's fast form against the original, on the same inputs and noise."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import random
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fastflow.cli import options

if TYPE_CHECKING:
    from torch import nn

    from fastflow.models import Vocoder
    from fastflow.stacks.compare import Row, Switch

ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@click.command()
@click.argument("target", metavar="TARGET", type=options.TEXT)
@click.option("--method", default="__call__", help="Of the model, to run instead of calling it: infer, inference, ...")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Audio that a checkpoint synthesises.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each is timed.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of all noise.")
@options.device
@options.backend
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PICTURE.png", help="Also draw the table.")
@click.option("--overwrite", is_flag=True, help="Replace PICTURE.png if it exists.")
def verify(
    target: str,
    method: str,
    seconds: float,
    rounds: int,
    seed: int,
    device: str,
    backend: str,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Run a model and its fast form side by side and print the errors and times of each block and from end to end.

    TARGET is a function, as package.module:function, that returns a torch.nn.Module, or a pair of one and its inputs: a
    tensor, a tuple of arguments or a dict of named ones. The model is compared with itself after `fastflow.accelerate`.
    Or TARGET is a checkpoint, or a bundled model's name: then plain PyTorch is compared with --backend.

    Everything runs in evaluation mode and float32 or float64, as the model is. Times are medians, in turns. An error is
    the root mean square of the difference over that of the original's output, and its bound 1e-4.

    Exit status: 0 all errors within the bound, 1 one is not or the model cannot be run, 2 wrong usage.
    """
    options.require(0 < seconds < math.inf, f"`--seconds` must be positive; got {seconds:g}")
    if output is not None:
        options.check_output_file("PICTURE.png", output, ".png", overwrite, "--overwrite replaces it")
        options.require(
            importlib.util.find_spec("matplotlib") is not None, "`-o` needs matplotlib: pip install 'fastflow[plot]'"
        )
    options.check_device(device)
    options.check_backend(backend)

    is_function = ENTRY_POINT.fullmatch(target) is not None and not os.path.lexists(target)
    sides = (
        _of_function(target, method, device, backend)
        if is_function
        else _of_checkpoint(target, method, seconds, seed, device, backend)
    )
    rows = _compared(sides, seed, rounds)
    click.echo(_table(sides, rows))
    if output is not None:
        from fastflow.cli.verify_plot import draw

        draw(output, sides.title, rows, overwrite)
        click.echo(f"{options.printable(str(output))}: written")
    if not all(row.within for row in rows):
        sys.exit(1)


class _Sides(NamedTuple):
    """What to compare; the fields are those of `fastflow.stacks.compare.compare`."""

    title: str
    run: Callable[[], Any]
    methods: Mapping[str, tuple[nn.Module, str]]
    switch: Switch
    left: str
    """What the report says of blocks that were left."""


def _of_function(target: str, method: str, device: str, backend: str) -> _Sides:
    import fastflow
    from fastflow.stacks import compare

    model, args, kwargs = _made(target)
    model = model.to(device).eval()
    args, kwargs = _on(args, device), _on(kwargs, device)
    _check_dtype(target, model)
    function = model if method == "__call__" else getattr(model, method, None)
    options.require(callable(function), f"`--method`: {type(model).__name__} has no method {method!r}")

    report = fastflow.accelerate(model)
    if not report.replaced:
        raise options.Failure(f"{target}: nothing is replaced, so there is nothing to compare\n{report}")
    methods = compare.replaced_methods(model, report)
    pair = compare.between_original_and_replaced(model, report)

    @contextmanager
    def switch(fast: bool) -> Iterator[None]:
        with pair(fast), fastflow.use_backend(backend if fast else "auto"):
            yield

    def run() -> Any:
        # looked up anew: the model itself may be what is replaced
        return (model if method == "__call__" else getattr(model, method))(*args, **kwargs)

    title = f"{target}, {_where(model)}; fast: fastflow.accelerate"
    left = "".join(f"\nleft: {e.path or '(the model)'} ({e.stack}): {e.reason}" for e in report.left)
    return _Sides(title, run, methods, switch, left)


def _made(target: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Return the module that an entry point makes, with the arguments of its call."""
    from torch import Tensor, nn

    name, _, path = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:
        raise options.UsageError(f"cannot import {name}: {_named(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            functions = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise options.UsageError(f"{name} has no {path!r}; it has {', '.join(functions[:12]) or 'no functions'}")
        found = getattr(found, part)
    options.require(callable(found), f"{target} must be a function; got {type(found).__name__}")
    try:
        made = found()
    except Exception as error:
        raise options.Failure(f"{target} fails: {_named(error)}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    if not isinstance(model, nn.Module):
        raise options.UsageError(
            f"{target} must return a torch.nn.Module, or a pair of one and its inputs; got {type(made).__name__}"
        )
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, dict):
        return model, (), inputs
    if not isinstance(inputs, tuple):
        raise options.UsageError(
            f"{target} must return inputs as a tensor, a tuple of arguments or a dict of named ones; "
            f"got {type(inputs).__name__}"
        )
    return model, inputs, {}


def _of_checkpoint(target: str, method: str, seconds: float, seed: int, device: str, backend: str) -> _Sides:
    options.require(method == "__call__", "`--method` is for functions; a checkpoint's model runs `infer`")
    import torch

    import fastflow

    model = options.load_model(target, device, "float32")
    frames = max(1, round(seconds * model.sampling_rate / model.hop_length))
    mel = _noise_mel(model, frames, seed).to(device)
    names = {module: name for name, module in model.named_modules()}
    methods = {names[network]: (network, "forward") for network in model.networks()}

    @contextmanager
    def switch(fast: bool) -> Iterator[None]:
        with fastflow.use_backend(backend if fast else "reference"), torch.no_grad():
            yield

    title = f"{target}, {_where(model)}, {frames} frames; original: plain PyTorch; fast: backend {backend}"
    return _Sides(title, lambda: model.infer(mel, model.usual_sigma), methods, switch, "")


def _noise_mel(model: Vocoder, frames: int, seed: int) -> Any:
    """Return noise of about the values that mels of speech have."""
    import torch

    noise = torch.randn(1, model.n_mel_channels, frames, generator=torch.Generator().manual_seed(seed))
    return (0.4 + 0.15 * noise).clamp(0, 1) if model.mel_form == "flowavenet" else 1.5 * noise - 5.0


def _compared(sides: _Sides, seed: int, rounds: int) -> list[Row]:
    import numpy as np
    import torch

    from fastflow.stacks import compare

    def run() -> Any:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return sides.run()

    try:
        with torch.no_grad():
            return compare.compare(run, sides.methods, sides.switch, rounds)
    except compare.CompareError as error:
        raise options.Failure(f"{sides.title}: {error}") from error
    except Exception as error:
        raise options.Failure(f"{sides.title}: the model fails on its inputs: {_named(error)}") from error


def _table(sides: _Sides, rows: list[Row]) -> str:
    from fastflow.stacks.compare import BOUND

    lines: list[tuple[str, ...]] = [("", "calls", "error", "largest", "original ms", "fast ms", "times as fast")]
    for row in rows:
        if row.error is None:
            lines.append((row.name, "0", "not called", "", "", "", ""))
            continue
        mark = "" if row.within else "  past the bound"
        medians = [f"{statistics.median(times):.2f}" for times in (row.original_ms, row.fast_ms)]
        cells = (row.name, str(row.calls), f"{row.error:.1e}", f"{row.largest:.1e}", *medians)
        lines.append((*cells, f"{row.ratio:.2f}{mark}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]
    past = sum(not row.within for row in rows)
    verdict = f"{past} of {len(rows)} past the bound of {BOUND:g}" if past else f"all within the bound of {BOUND:g}"
    return "\n".join([options.printable(sides.title), "", *table, "", verdict]) + sides.left


def _check_dtype(target: str, model: nn.Module) -> None:
    import torch

    others = {p.dtype for p in model.parameters()} - {torch.float32, torch.float64}
    options.require(
        not others,
        f"{target}: the model must be in float32 or float64, for which the bound is; got {', '.join(map(str, others))}",
    )


def _where(model: nn.Module) -> str:
    import torch

    first = next(model.parameters(), torch.empty(0))
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if first.device.type == "cpu" else ""
    return f"{str(first.dtype).removeprefix('torch.')} on {first.device}{threads}"


def _on(value: Any, device: str) -> Any:
    """Return inputs with their tensors on the device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(item, device) for key, item in value.items()}
    return type(value)(_on(item, device) for item in value) if type(value) in (list, tuple) else value


def _named(error: BaseException) -> str:
    """Return one line of an error that is not fastflow's own."""
    return f"{type(error).__name__}: {options.first_line(error)}"
