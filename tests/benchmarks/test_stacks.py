"""`python -m benchmarks.stacks` on the cases that need no package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import stacks

TWINS = [
    "WaveGlow-256, 80 frames",
    "FloWaveNet, 43 frames",
    "Parallel WaveGAN, 86 frames",
    "DiffWave, one step, 22016 samples",
    "DiffSinger network, one step, 500 frames",
]


def bench(out: Path, *cases: str) -> tuple[int, list[dict[str, Any]]]:
    status = stacks.main(["--tiny", "--rounds", "1", "--out", str(out), "--commit", "", "--case", *cases])
    return status, json.loads(next(out.glob("*/stacks.json")).read_text())


def test_a_row_for_each_side_of_each_case(tmp_path: Path) -> None:
    status, rows = bench(tmp_path, *TWINS)
    assert status == 0
    assert [(row["case"], row["variant"]) for row in rows] == [(c, v) for c in TWINS for v in ("original", "fastflow")]
    assert all(row["median_ms"] > 0 and row["samples"] > 0 for row in rows)
    assert all(row["error"] < 1e-5 for row in rows[1::2])


def test_no_times_out_of_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stacks, "BOUND", 0.0)
    status, rows = bench(tmp_path, TWINS[2])
    assert status == 1 and rows[1]["refused"] == "out of bounds"
    assert all(row["median_ms"] is None for row in rows)
    assert "out of bounds" in capsys.readouterr().out
