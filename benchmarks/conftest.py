"""pytest-benchmark as the front of our clock: `make bench`, or `python -m pytest benchmarks -k "wn and float32"`.

The variants of a case must take turns, be checked first, and have inputs that take turns: `fastflow.bench.timing` does
that, once for all variants of a case. Each variant's test then hands its times over, through a clock that
pytest-benchmark reads: its tables, histograms and comparisons of runs are of what was measured. Rows are stored in
benchmarks/results as by every other program here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastflow.bench import quick, rows
from fastflow.bench.check import no_tf32
from fastflow.bench.rows import Row

RESULTS = Path(__file__).parent / "results"
MOST_GFLOP = 50.0  # of an operation on a CPU: half a second on two cores


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastflow's benchmarks")
    group.addoption("--device", default="cpu", help="of the operations; whole models run on the CPU here")
    group.addoption("--dtypes", nargs="+", default=["float32", "bfloat16"])
    group.addoption("--rounds", type=int, default=7)
    group.addoption("--threads", type=int, default=torch.get_num_threads())
    group.addoption("--most-gflop", type=float, help=f"leave out larger operations; default on a CPU: {MOST_GFLOP:g}")
    group.addoption("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    group.addoption("--note", default="", help="what else is known of the machine's state; stored with the rows")
    group.addoption("--out", type=Path, default=RESULTS)


class Recorded:
    """A clock that stands still but for `pass_by`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Recorded()
Measured = dict[str, tuple[Row, list[float]]]
"""Rows and milliseconds by variant."""


class Session(NamedTuple):
    """What the options say."""

    device: torch.device
    backends: list[str]
    dtypes: Sequence[str]
    rounds: int
    threads: int
    most_gflop: float
    tiny: bool
    note: str
    out: Path


def session_of(config: pytest.Config) -> Session:
    device = torch.device(config.getoption("--device"))
    most = config.getoption("--most-gflop") or (MOST_GFLOP if device.type == "cpu" else float("inf"))
    names = ("--rounds", "--threads")
    return Session(
        device,
        quick.able(device),
        config.getoption("--dtypes"),
        *(config.getoption(name) for name in names),
        most,
        config.getoption("--tiny"),
        config.getoption("--note"),
        config.getoption("--out"),
    )


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    no_tf32()
    made = session_of(request.config)
    torch.set_num_threads(made.threads)
    return made


class Keeper:
    """Measures a case when its first variant is asked for, stores its rows, and keeps it until another's turn."""

    def __init__(self, session: Session) -> None:
        self._session, self._key, self._measured = session, "", Measured()

    def __call__(
        self, key: str, device: torch.device, measure: Callable[[], Sequence[tuple[Row, list[float]]]]
    ) -> Measured:
        if key != self._key:
            self._measured = {}
            found = measure()
            about = rows.about(device, rows.commit()) | {"note": self._session.note}
            for row, _ in found:
                row.about, row.threads = about, self._session.threads
            rows.store([row for row, _ in found], self._session.out / rows.machine(device))
            self._key, self._measured = key, {row.variant: (row, times) for row, times in found}
        return self._measured


@pytest.fixture(scope="session")
def measured(session: Session) -> Keeper:
    return Keeper(session)


def selected(request: pytest.FixtureRequest, case: object, dtype: str) -> list[str]:
    """Return the variants of a case that this run is asked for."""
    return [
        item.callspec.params["variant"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.function is request.function
        and (item.callspec.params["case"], item.callspec.params["dtype"]) == (case, dtype)
    ]


def hand_over(benchmark: Any, row: Row, times: Sequence[float]) -> None:
    """Give pytest-benchmark a variant's times, or fail where it is refused."""
    benchmark.group = " | ".join(filter(None, [row.op, row.case, row.dtype]))
    benchmark.extra_info.update(asdict(row))
    if row.refused:
        pytest.fail(row.refused, pytrace=False)
    left = iter(times)
    benchmark.pedantic(lambda: CLOCK.pass_by(next(left) / 1e3), rounds=len(times), iterations=1)
