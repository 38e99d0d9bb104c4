"""What `fastflow bench` runs: operations at published sizes and a whole WaveGlow-256, in two minutes on two cores."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from fastflow.bench import models
from fastflow.bench.cases import CASES, Case, toy_cases
from fastflow.bench.check import DTYPES
from fastflow.bench.rows import Row
from fastflow.bench.text import figure, noise_line, table
from fastflow.bench.timing import AGAIN, Clock, Run, judge, rates
from fastflow.ops import registry

# Small sizes, that a CPU is through with in time, of everything that a flow is made of.
OPERATIONS = {
    "gate": "VITS, 10 s, batch 1",
    "wn_layer": "WaveGlow-256, 1 s, batch 1",
    "wn": "VITS, 10 s, batch 1",
    "affine_coupling": "WaveGlow-256, 8 channels, 10 s, reverse",
    "invconv1x1": "Glow-TTS, 160 channels, 10 s",
    "actnorm": "Glow-TTS, 160 channels, 10 s, reverse",
    "flow_step": "WaveGlow-256, 8 channels, 10 s, reverse",
}
FRAMES = {"cpu": 43, "cuda": 861}  # of WaveGlow's mel: 0.5 s, 10 s


class Subject(NamedTuple):
    """A case that is ready to run: `eager`, and `ours` by the name of a backend."""

    row: Row
    clock: Clock
    runs: dict[str, Run]
    results: Callable[[], tuple[object, object]]  # what is right, and plain PyTorch's in the same dtype


def operations(tiny: bool) -> list[Case]:
    if tiny:
        return [case for case in toy_cases() if case.op in OPERATIONS and "forward" not in case.name]
    return [case for case in CASES if OPERATIONS.get(case.op) == case.name]


def subjects(device: torch.device, dtype: str, backends: Sequence[str], tiny: bool) -> dict[str, Callable[[], Subject]]:
    """Return what makes each case, by its name."""

    def operation(case: Case) -> Subject:
        clock = Clock(device).for_inputs(case.bytes(DTYPES[dtype]))
        inputs = [case.arguments(DTYPES[dtype], device, seed) for seed in range(clock.sets)]
        functions = models.op_functions(case, backends, inputs[0][0])
        runs: dict[str, Run] = {name: lambda i, f=f: f(*inputs[i]) for name, f in functions.items()}  # type: ignore[misc]
        row = Row("bench", case.name, case.op, dtype, "", flops=case.flops, bytes=case.bytes(DTYPES[dtype]))
        return Subject(row, clock, runs, lambda: models.op_results(case, inputs[0], DTYPES[dtype], device))

    def waveglow() -> Subject:
        frames = 3 if tiny else FRAMES[device.type]
        work = models.synthesis(frames, 1, DTYPES[dtype], device, 2, tiny)
        runs: dict[str, Run] = {"eager": work.eager}
        runs |= {backend: models.on_backend(backend, work.ours) for backend in backends}
        row = Row("bench", work.case.name, "infer", dtype, "", samples=work.samples, flops=work.case.flops)
        row.bytes = work.case.bytes(DTYPES[dtype])
        return Subject(row, Clock(device, 2), runs, work.results)

    made = {f"{case.op} | {case.name} | {dtype}": functools.partial(operation, case) for case in operations(tiny)}
    return made | {f"infer | WaveGlow | {dtype}": waveglow}


class Limit:
    """Says which cases start; after `seconds` none but the first does: a table needs a row."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self.end, self.first = time.monotonic() + seconds, True

    def starts(self, name: str) -> bool:
        late = not self.first and time.monotonic() > self.end
        self.say(f"{name} is left out: {self.seconds:.0f} seconds are over" if late else name)
        self.first = False
        return not late


def run(
    device: torch.device,
    dtypes: Sequence[str],
    backends: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    tiny: bool,
    say: Callable[[str], None],
) -> Iterator[Row]:
    """Check and time every case on plain PyTorch and on `backends`; start none but the first after `seconds`."""
    limit = Limit(seconds, say)
    for dtype in dtypes:
        held = rates(DTYPES[dtype], device, tiny)
        for name, make in subjects(device, dtype, backends, tiny).items():
            if not limit.starts(name):
                continue
            with torch.no_grad():
                subject = make()
                twin = list(subject.runs)[-1]
                runs = subject.runs | {twin + AGAIN: subject.runs[twin]}
                for row, _ in judge(subject.row, runs, *subject.results(), subject.clock, rounds, held):
                    yield row


def able(device: torch.device) -> list[str]:
    """Return the backends beside the reference that can run on a device."""
    here = ("cpu",) if device.type == "cpu" else ("triton", "cuda")
    return [status.backend for status in registry.status() if status.backend in here and status.can_run]


def markdown(rows: Sequence[Row]) -> str:
    """Return what to paste into an issue."""
    eager = {row.key()[:-1]: row for row in rows if row.variant == "eager"}
    lines = []
    for row in rows:
        if row.variant.endswith(AGAIN):
            continue
        what = [f"`{row.op}`", row.case, row.dtype, row.variant]
        if row.median_ms is None:
            lines.append([*what, row.refused, *[""] * 6])
            continue
        plain = eager[row.key()[:-1]].median_ms
        lines.append(
            [
                *what,
                f"{figure(row.median_ms)} [{figure(row.p20_ms or 0)}, {figure(row.p80_ms or 0)}]",
                f"{plain / row.median_ms:.2f}" if plain else "",
                f"{row.times_real_time:.2f}" if row.samples else "",
                f"{row.fraction:.2f}",
                f"{row.fraction_of_copy:.2f}",
                f"{row.extra_mb:.0f}",
                f"{row.error:.1e}",
            ]
        )
    head = ["operation", "size", "dtype", "variant", "ms, median [20 %, 80 %]", "times as fast as eager"]
    head += ["times real time", "of products", "of a copy", "extra MB", "error"]
    first = rows[0]
    facts = {name: value for name, value in first.about.items() if name != "date"}
    facts |= {"threads": str(first.threads), "load": f"{max(row.load for row in rows):.1f}"}
    for dtype in dict.fromkeys(row.dtype for row in rows):
        mine = [row for row in rows if row.dtype == dtype and row.rate]
        if mine:
            best, fastest = max(row.rate for row in mine), max(row.copy for row in mine)
            facts[f"products in {dtype}"] = f"{best / 1e9:,.0f} GFLOP/s"
            facts[f"copy in {dtype}"] = f"{fastest / 1e9:,.1f} GB/s"
    text = [
        table(["fastflow bench", first.about.get("date", "")], [[n, v] for n, v in facts.items()], 2),
        table(head, lines, 4),
    ]
    legend = (
        '"Eager" is plain PyTorch. Inputs are random and take turns. "Of products", "of a copy": the published '
        "arithmetic and the least traffic over the time, as fractions of what PyTorch's own matrix product and copy "
        "reach in the same run. Error: rms against float64 (half precision: float32), relative; what is out of "
        "bounds gets no time."
    )
    return "\n".join([*text, *filter(None, [noise_line(rows), legend])]) + "\n"
