"""`make bench` at toy sizes: pytest-benchmark tells what our clock measured, and rows are stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import conftest
from fastflow.bench import rows
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, COPY, RATE

ROOT = Path(__file__).parents[2]


def test_what_is_selected_is_measured_stored_and_handed_over(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks"]
    command += ["--tiny", "--rounds", "3", "--threads", "1", "--out", str(tmp_path), "--note", "quiet"]
    command += ["--benchmark-json", str(tmp_path / "told.json")]
    command += ["-k", "float32 and (affine_coupling or (VITS and fastflow and not again))"]
    # of several test processes each would take itself for one that must not measure
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / rows.machine(torch.device("cpu"))
    operations, models = rows.read(folder / "ops.json"), rows.read(folder / "cpu.json")
    assert {row.op for row in operations} == {"affine_coupling", "affine_coupling_backward"}
    assert {row.variant for row in operations} == {"eager", "cpu", "cpu" + AGAIN}
    assert [row.variant for row in models] == [RATE, COPY, "fastflow"]
    for row in [*operations, *models]:
        assert row.rounds == 3 and row.median_ms and row.threads == 1 and row.about["note"] == "quiet"
    medians = {(row.op, row.case, row.variant): row.median_ms for row in [*operations, *models]}
    told = json.loads((tmp_path / "told.json").read_text())["benchmarks"]
    assert len(told) == len(operations) + len(models) - 2
    for one in told:
        row = one["extra_info"]
        assert one["stats"]["median"] * 1e3 == pytest.approx(medians[row["op"], row["case"], row["variant"]])


def test_what_is_refused_fails() -> None:
    class Benchmark:
        group = ""
        extra_info: dict[str, object] = {}  # noqa: RUF012

    row = Row("ops", "size", "gate", "float32", "cpu", refused="output 0 is out of bounds")
    with pytest.raises(pytest.fail.Exception, match="output 0 is out of bounds"):
        conftest.hand_over(Benchmark(), row, [])
