"""The clock counts what is called, on inputs that take turns; memory is what a run takes beyond what was there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastflow.bench import timing
from fastflow.bench.rows import Row
from fastflow.bench.timing import COPY, RATE, Clock, Own, judge, rates

CPU = torch.device("cpu")


def test_sets_are_enough_that_a_cache_is_full_of_others() -> None:
    size = timing.cache_bytes(CPU) / 10
    clock = Clock(CPU).for_inputs(size)
    assert clock.sets == 21 and clock.cache(size) == "cold"
    assert Clock(CPU).for_inputs(1).sets == timing.MOST_SETS and Clock(CPU, timing.MOST_SETS).cache(1) == "warm"
    assert Clock(CPU).for_inputs(1e12).sets == 4 and Clock(CPU, 1).cache(1e12) == "warm"


def test_no_call_finds_the_inputs_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.TURN_MS, "cpu", 0.0)  # one call at a time
    used: list[tuple[str, int]] = []
    runs = {name: lambda i, name=name: used.append((name, i)) for name in "abc"}
    times = Clock(CPU, 8).measure(runs, 4)
    assert all(len(times[name]) == 4 and min(times[name]) > 0 for name in "abc")
    assert [i for _, i in used[-12:]] == [n % 8 for n in range(12)]
    assert [name for name, _ in used[-12:]] == [*"abc", *"bca", *"cab", *"abc"]


def test_extra_memory_is_that_of_the_run() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell a process its peak")
    kept = torch.ones(10_000_000)
    assert Clock(CPU).extra_mb(lambda i: torch.ones(25_000_000).sum()) == pytest.approx(100, rel=0.1)
    assert Clock(CPU).extra_mb(lambda i: kept.sum()) < 10


def test_rates_and_variants_that_compute_something_else() -> None:
    """Each is checked against its own; only what is right is timed."""
    x = torch.randn(1000)
    runs = {"right": lambda i: x + 1, "other": lambda i: x * 2, "wrong": lambda i: x * 2}
    row = Row("ops", "size", "gate", "float32", "", flops=1000.0, bytes=8000.0)
    own = {"other": Own(x.double() * 2, x * 2, 5.0)}
    held = rates(torch.float32, CPU, tiny=True)
    made = {
        mine.variant: (mine, times) for mine, times in judge(row, runs, x.double() + 1, x + 1, Clock(CPU), 3, held, own)
    }
    assert list(made) == ["wrong", "right", "other"]
    wrong, times = made["wrong"]
    assert wrong.refused == "output 0 is out of bounds" and times == [] and wrong.median_ms is None
    for name, flops in (("right", 1000.0), ("other", 5.0)):
        mine, times = made[name]
        assert len(times) == 3 and mine.flops == flops and mine.first_ms and mine.warm_ms and mine.cache == "warm"
        assert (
            mine.rate > 0 and mine.copy > 0 and mine.fraction == pytest.approx(flops / mine.median_ms * 1e3 / mine.rate)
        )
    assert set(held.runs) == set(held.work) == {RATE, COPY}
