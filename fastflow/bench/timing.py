"""How long a call takes: the variants of a case taking turns, on inputs that take turns, after each was checked."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastflow.bench.cases import Maker
from fastflow.bench.check import DTYPES, worst
from fastflow.bench.rows import Row

Run = Callable[[int], Any]
"""One call on the input set of this number."""

RATE, COPY = "matrix product", "copy"
"""The variants that the others are held against."""
AGAIN = ", again"
"""Ends the name of a variant that is another's twin: how far the two differ is the noise of the run."""
TURN_MS = {"cuda": 1.0, "cpu": 20.0}  # what is timed at once: shorter calls are made several times
MOST_CALLS = 1000
WARM_BELOW_MS = 10.0  # longer calls find little of their inputs in a cache in either case
MOST_SETS = 64


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.strip().rstrip("K")) << 10 for size in sizes), default=32 << 20)


class Clock:
    """Times calls on a device, over `sets` sets of inputs that take turns."""

    def __init__(self, device: torch.device, sets: int = 4) -> None:
        self.device, self.sets = device, sets

    def for_inputs(self, size: float) -> Clock:
        """Return a clock with sets enough that those of `size` bytes fill the last cache twice before one is reused."""
        needed = math.ceil(2 * cache_bytes(self.device) / max(size, 1.0)) + 1
        return Clock(self.device, min(max(needed, self.sets), MOST_SETS))

    def cache(self, size: float) -> str:
        """Return "cold" or "warm": whether sets of `size` bytes fill the last cache before one is used again."""
        return "cold" if (self.sets - 1) * size >= cache_bytes(self.device) else "warm"

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, run: Run, number: int) -> tuple[Any, float]:
        """Return what one call returns, and its milliseconds."""
        self.synchronize()
        start = time.perf_counter()
        result = run(number)
        self.synchronize()
        return result, (time.perf_counter() - start) * 1e3

    def once(self, run: Run, first: int, count: int) -> float:
        """Return milliseconds per call of `count` calls in a row, each on the next set."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for i in range(count):
                run((first + i) % self.sets)
            return (time.perf_counter() - start) * 1e3 / count
        with torch.cuda.device(self.device):  # events are recorded on the current device's stream
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            events[0].record()
            for i in range(count):
                run((first + i) % self.sets)
            events[1].record()
            events[1].synchronize()
            return float(events[0].elapsed_time(events[1])) / count

    def measure(self, runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
        """Time the variants, taking turns within a round; the order turns from round to round."""
        if not runs:  # all were refused
            return {}
        counts = {}
        for name, run in runs.items():
            took = self.once(run, 0, 1 if self.device.type == "cpu" else 3)  # warms up; it ran before, to be checked
            if took < WARM_BELOW_MS:
                took = self.once(run, 0, 1)
            counts[name] = max(1, min(MOST_CALLS, math.ceil(TURN_MS[self.device.type] / max(took, 1e-3))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        names, number = list(runs), 0
        for r in range(rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                times[name].append(self.once(runs[name], number, counts[name]))
                number += counts[name]  # none finds the inputs of the one before it in a cache
        return times

    def extra_mb(self, run: Run) -> float:
        """Return the memory that a run takes at most on top of what is held before it, in MB."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run(0)
            return (torch.cuda.max_memory_allocated(self.device) - before) / 1e6
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of freed blocks would hide new ones
        before_mb = _resident("VmRSS")
        return max(0.0, peak_mb(lambda: run(0)) - before_mb) if before_mb else 0.0


def _resident(name: str) -> float:
    """Return this process's VmRSS or VmHWM in MB; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.findall(rf"{name}:\s+(\d+)", status)[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return 0.0


def peak_mb(run: Callable[[], Any]) -> float:
    """Return the resident memory that this process has at most during a run, in MB; 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    except OSError:
        return 0.0
    run()
    return _resident("VmHWM")


class Rates(NamedTuple):
    """What the variants are held against: PyTorch's product of large matrices, and its copy."""

    runs: dict[str, Run]
    work: dict[str, float]  # FLOP of the product, bytes that the copy reads and writes


def rates(dtype: torch.dtype, device: torch.device, tiny: bool = False) -> Rates:
    """Make them on random values: on zeros the clock of a GPU stays higher, and the rate is one that no model sees."""
    n = 64 if tiny else 8192 if device.type == "cuda" else 2048
    m = Maker(dtype, device)
    a, b = m.randn(n, n), m.randn(n, n)
    size = 1 << 12 if tiny else 4 * cache_bytes(device)
    source = m.randn(size // dtype.itemsize)
    to = torch.empty_like(source)
    return Rates(
        {RATE: lambda i: torch.mm(a, b), COPY: lambda i: to.copy_(source)},
        {RATE: 2.0 * n**3, COPY: 2.0 * to.numel() * dtype.itemsize},
    )


class Own(NamedTuple):
    """What a variant that computes something else is checked against, and its arithmetic."""

    expected: Any
    plain: Any
    flops: float


def judge(
    row: Row,
    runs: Mapping[str, Run],
    expected: Any,
    plain: Any,
    clock: Clock,
    rounds: int,
    held: Rates | None = None,
    own: Mapping[str, Own] | None = None,
) -> Iterator[tuple[Row, list[float]]]:
    """Check every variant against `expected`, then time those that are within bounds; yield rows with their times.

    `plain` is plain PyTorch's result in the same dtype: its error is the measure for half precision. The rates take
    their turns among the variants. What is refused comes first, and without times.
    """
    good: dict[str, Row] = {}
    right = others = Own(expected, plain, row.flops)
    for name, run in runs.items():
        right = (own or {}).get(name, others)
        mine = replace(row, variant=name, cache=clock.cache(row.bytes), flops=right.flops)
        try:
            got, mine.first_ms = clock.timed(run, 0)
            worst(mine, got, right.expected, right.plain, DTYPES[row.dtype])
            del got
        except Exception as error:  # reported as a row
            mine.refused = f"{type(error).__name__}: {error}".splitlines()[0]
        if mine.refused:
            mine.first_ms = None
            yield mine, []
        else:
            good[name] = mine
    del expected, plain, right, others
    able = {name: runs[name] for name in good}
    times = clock.measure(able | (held.runs if held and able else {}), rounds)
    load = os.getloadavg()[0]
    reached = {
        name: work / statistics.median(times[name]) * 1e3
        for name, work in (held.work if held else {}).items()
        if name in times
    }
    for name, mine in good.items():
        mine.set_times(times[name])
        mine.rate, mine.copy, mine.load = reached.get(RATE, 0.0), reached.get(COPY, 0.0), load
        if clock.sets > 1 and statistics.median(times[name]) < WARM_BELOW_MS:
            mine.warm_ms = statistics.median(Clock(clock.device, 1).measure({name: able[name]}, rounds)[name])
        mine.extra_mb = clock.extra_mb(able[name])
        yield mine, times[name]
