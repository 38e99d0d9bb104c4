"""Whole models and blocks on the CPU, each variant in a process of its own: the cases of `benchmarks.cpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import cpu
from benchmarks.conftest import CLOCK, Keeper, Session, hand_over, selected, session_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = session_of(metafunc.config)
    installed = [name for name in cpu.VARIANTS if not cpu.missing(name)]
    metafunc.parametrize(
        ("case", "dtype", "variant"),
        [
            pytest.param(case, dtype, variant, id=f"{case} | {dtype} | {variant}")
            for dtype in session.dtypes
            if dtype in cpu.DTYPES
            for case in cpu.CASES
            for variant in cpu.able(installed, case, dtype)
        ],
    )


@pytest.mark.benchmark(timer=CLOCK)
def test_model(
    case: str,
    dtype: str,
    variant: str,
    session: Session,
    measured: Keeper,
    request: pytest.FixtureRequest,
    benchmark: Any,
) -> None:
    spec = {"case": case, "dtype": dtype, "threads": session.threads, "tiny": session.tiny}
    wanted = selected(request, case, dtype)
    device = torch.device("cpu")
    found = measured(f"{case} {dtype}", device, lambda: cpu.bench(spec, wanted, session.rounds))
    hand_over(benchmark, *found[variant])
