"""Two ways of running one model, side by side: errors and times of its blocks and from end to end."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.stacks import block as blocks
from fastflow.stacks.block import Block
from fastflow.stacks.layers import LayerList
from fastflow.stacks.walk import Report

BOUND = 1e-4
"""Of whole models in float32: the error's root mean square over the signal's."""

Call = Callable[[], Any]
Switch = Callable[[bool], AbstractContextManager[None]]
"""A context in which everything runs as the original, or where its argument is true, fast."""


class CompareError(RuntimeError):
    """The two sides cannot be compared."""


@dataclass
class Row:
    """One block, or with the name "end to end" the whole."""

    name: str
    calls: int = 1
    """How often one run of the model calls it."""
    error: float | None = None
    """Root mean square of the difference over that of the original's output; None where the run never calls it."""
    largest: float = 0.0
    """Largest absolute difference."""
    original_ms: list[float] = field(default_factory=list)
    """Times of one call of the original."""
    fast_ms: list[float] = field(default_factory=list)
    """Times of the same call, fast: in turn with the original's."""

    @property
    def within(self) -> bool:
        """Whether the error is within the bound; not so where it is not a number."""
        return self.error is None or self.error <= BOUND

    @property
    def ratio(self) -> float:
        """How many times as long the original takes: ratio of the medians."""
        return statistics.median(self.original_ms) / statistics.median(self.fast_ms)


def compare(run: Call, methods: Mapping[str, tuple[nn.Module, str]], switch: Switch, rounds: int) -> list[Row]:
    """Run both sides on the same inputs and return a row for each of `methods`, then one for the whole.

    Args:
        run: runs the model; what it draws at random it must draw the same in every call.
        methods: by name, the modules and the names of their methods to look at; see `replaced_methods`.
        switch: chooses the side.
        rounds: how often each is timed, in turns.

    Raises:
        CompareError: the original differs from run to run, or there is no tensor in its output.
    """
    record = _Record(methods)
    with switch(False):
        with record.listening():
            expected = _floats(run())
        again = _floats(run())
    if not expected:
        raise CompareError("the model returns no floating-point tensor that could be compared")
    noise = _row("", expected, again)
    if not noise.within:
        raise CompareError(
            f"the original differs from run to run, by {noise.error:.2g} of its output: what it draws at random must "
            "come from the generators that `torch.manual_seed`, `numpy.random.seed` and `random.seed` set"
        )
    with switch(True):
        whole = _row("end to end", expected, _floats(run()))
    del expected, again
    rows = [_of_block(name, record, switch, rounds) for name in methods]
    _time(whole, run, switch, rounds)
    return [*rows, whole]


def replaced_methods(model: nn.Module, report: Report) -> dict[str, tuple[nn.Module, str]]:
    """Return what `compare` shall look at after `accelerate(model)`: the methods of each block that are replaced."""
    methods = {}
    for entry in report.replaced:
        module, name = model.get_submodule(entry.path), entry.path or "(the model)"
        for method in _computed(module):
            methods[name if method == "forward" else f"{name}.{method}"] = (module, method)
    return methods


def _computed(module: nn.Module) -> list[str]:
    """Return the names of a replaced module's methods that are no longer the original's."""
    if isinstance(module, LayerList):
        return ["forward"]  # of its blocks
    mro = type(module).__mro__
    of = blocks.original(module)
    ours = [c for c in mro[1 : mro.index(of)] if issubclass(c, Block)]
    return [
        name for name in ("forward", "reverse", "infer") if hasattr(of, name) and any(name in vars(c) for c in ours)
    ]


def between_original_and_replaced(model: nn.Module, report: Report) -> Switch:
    """Return the switch for a model that was accelerated; it is the original from now on, outside of the switch."""
    modules = [model.get_submodule(entry.path) for entry in report.replaced]
    parts = [(module, blocks.kind(module), module.__dict__["_fastflow"]) for module in modules]
    report.revert()

    @contextmanager
    def switch(fast: bool) -> Iterator[None]:
        if not fast:
            yield
            return
        for module, kind, cache in parts:
            blocks.replace(module, kind)
            module.__dict__["_fastflow"] = cache  # so that weights are packed once, as in a long run
        try:
            yield
        finally:
            for module, _, _ in parts:
                blocks.revert(module)

    return switch


class _Record:
    """The arguments of the first call of each method, and how often it is called."""

    def __init__(self, methods: Mapping[str, tuple[nn.Module, str]]) -> None:
        self.methods = methods
        self.calls = dict.fromkeys(methods, 0)
        self.first: dict[str, Call] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the calls made inside the `with` block."""
        heard = {name: self._heard(name, module, method) for name, (module, method) in self.methods.items()}
        try:
            yield
        finally:
            for module, method in heard.values():
                del module.__dict__[method]

    def _heard(self, name: str, module: nn.Module, method: str) -> tuple[nn.Module, str]:
        """Put a listener in front of a method; a list of blocks is heard through its first."""
        layers = isinstance(module, nn.ModuleList)
        listened = module[0] if isinstance(module, nn.ModuleList) else module
        original = getattr(listened, method)

        def listener(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name not in self.first:
                args, kwargs = _copied(args), _copied(kwargs)
                if layers:
                    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
                    self.first[name] = lambda: LayerList.results(module, arguments)
                else:
                    # looked up when it is called: by then the module may have another class
                    self.first[name] = lambda: getattr(module, method)(*args, **kwargs)
            return original(*args, **kwargs)

        listened.__dict__[method] = listener
        return listened, method


def _of_block(name: str, record: _Record, switch: Switch, rounds: int) -> Row:
    call = record.first.get(name)
    if call is None:
        return Row(name, 0)
    with switch(False):
        expected = _floats(call())
    with switch(True):
        row = _row(name, expected, _floats(call()))
    row.calls = record.calls[name]
    _time(row, call, switch, rounds)
    return row


def _time(row: Row, call: Call, switch: Switch, rounds: int) -> None:
    for _ in range(rounds):
        for fast, times in ((False, row.original_ms), (True, row.fast_ms)):
            with switch(fast):
                _wait()
                start = time.perf_counter()
                call()
                _wait()
                times.append((time.perf_counter() - start) * 1e3)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(name: str, expected: list[Tensor], got: list[Tensor]) -> Row:
    """Return how far two results are apart; infinitely, where their shapes differ."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return Row(name, error=float("inf"), largest=float("inf"))
    differences = [(a - b).abs() for a, b in zip(got, expected, strict=True)]
    square, signal = (sum(float(t.square().sum()) for t in tensors) for tensors in (differences, expected))
    largest = max(float(t.max()) if t.numel() else 0.0 for t in differences)
    if square == 0 and signal == 0:
        return Row(name, error=0.0, largest=largest)
    return Row(name, error=(square / signal) ** 0.5 if signal else float("inf"), largest=largest)


def _floats(result: Any) -> list[Tensor]:
    """Return all floating-point tensors of a result, in float64 so that the comparison adds no error."""
    if isinstance(result, Tensor):
        return [result.detach().double()] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        result = list(result.values())
    return [t for item in result for t in _floats(item)] if isinstance(result, list | tuple) else []


def _copied(value: Any) -> Any:
    """Return arguments whose tensors no one else writes to."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value
