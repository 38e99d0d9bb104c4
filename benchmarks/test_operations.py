"""Every operation of the registry on every backend that can run it, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.conftest import CLOCK, Keeper, Session, hand_over, selected, session_of
from fastflow.bench import models
from fastflow.bench.cases import CASES, Case, toy_cases
from fastflow.bench.check import DTYPES
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, Clock, Run, judge, rates


def variants(case: Case, dtype: str, session: Session) -> list[str]:
    like = torch.empty(1, 1, 1, dtype=DTYPES[dtype], device=session.device)
    names = list(models.op_functions(case, session.backends, like))
    return [*names, names[-1] + AGAIN]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = session_of(metafunc.config)
    cases = toy_cases() if session.tiny else [case for case in CASES if case.flops <= session.most_gflop * 1e9]
    metafunc.parametrize(
        ("case", "dtype", "variant"),
        [
            pytest.param(case, dtype, variant, id=f"{case.op} | {case.name} | {dtype} | {variant}")
            for dtype in session.dtypes
            for case in cases
            for variant in variants(case, dtype, session)
        ],
    )


def measure(case: Case, dtype: str, wanted: Sequence[str], session: Session) -> list[tuple[Row, list[float]]]:
    size = case.bytes(DTYPES[dtype])
    clock = Clock(session.device).for_inputs(size)
    inputs = [case.arguments(DTYPES[dtype], session.device, seed) for seed in range(clock.sets)]
    functions = models.op_functions(case, session.backends, inputs[0][0])
    functions |= {name + AGAIN: function for name, function in functions.items()}
    runs: dict[str, Run] = {name: lambda i, f=functions[name]: f(*inputs[i]) for name in wanted}
    row = Row("ops", case.name, case.op, dtype, "", flops=case.flops, bytes=size)
    results = models.op_results(case, inputs[0], DTYPES[dtype], session.device)
    held = rates(DTYPES[dtype], session.device, session.tiny)
    return list(judge(row, runs, *results, clock, session.rounds, held))


@pytest.mark.benchmark(timer=CLOCK)
@torch.no_grad()
def test_operation(
    case: Case,
    dtype: str,
    variant: str,
    session: Session,
    measured: Keeper,
    request: pytest.FixtureRequest,
    benchmark: Any,
) -> None:
    wanted = selected(request, case, dtype)
    key = f"{case.op} {case.name} {dtype}"
    found = measured(key, session.device, lambda: measure(case, dtype, wanted, session))
    hand_over(benchmark, *found[variant])
