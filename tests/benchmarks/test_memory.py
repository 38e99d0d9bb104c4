"""The benchmark of training memory runs from end to end at toy sizes, each variant in a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.memory import EAGER, VARIANTS
from fastflow.bench import rows
from fastflow.models import WaveGlowLoss


def test_rows_of_all_variants_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tiny", "--flows", "4", "--rounds", "2", "--threads", "1", "--out", str(tmp_path), "--commit", "abc"]
    assert memory.main([*arguments, "--variants", "fastflow, invert"]) == 0
    stored = rows.read(tmp_path / rows.machine(torch.device("cpu")) / "memory.json")
    assert [row.variant for row in stored] == [EAGER, "fastflow, invert"]
    for row in stored:
        assert row.flows == 4 and row.threads == 1 and row.rounds == 2 and row.min_ms and row.cpu_ms
        assert row.error is not None and row.bound is not None and row.error <= row.bound and not row.refused
        assert row.about["commit"] == "abc"
    assert stored[1].kept_mb < 0.5 * stored[0].kept_mb
    assert "| 4 | fastflow, invert |" in capsys.readouterr().out


def test_under_autocast_twice_the_error_of_eager_is_allowed(tmp_path: Path) -> None:
    arguments = ["--tiny", "--flows", "4", "--rounds", "1", "--threads", "1", "--out", str(tmp_path), "--commit", "abc"]
    arguments += ["--dtype", "bfloat16", "--batch", "2", "--variants", "fastflow, recompute"]
    assert memory.main(arguments) == 0
    eager, ours = rows.read(tmp_path / rows.machine(torch.device("cpu")) / "memory.json")
    assert (
        eager.case == "WaveGlow-256 training, 4 flows, batch 2" and eager.dtype == "bfloat16" and eager.samples == 256
    )
    assert eager.error and eager.error > memory.BOUND
    assert eager.bound == ours.bound == pytest.approx(2 * eager.error) and ours.error and not ours.refused


def test_a_process_that_ends_is_a_refused_row_of_this_part() -> None:
    spec = {
        "case": "training",
        "dtype": "float32",
        "threads": 1,
        "tiny": True,
        "device": "cpu",
        "batch": 1,
        "variant": "no such variant",
        "flows": 4,
    }
    worker = memory.Worker(spec)
    worker.close()
    row = worker.row
    assert row.refused.startswith("its process ended: ") and (row.part, row.flows, row.threads) == ("memory", 4, 1)


@pytest.mark.parametrize("flows", [4, 24])
def test_the_published_forward_is_ours(flows: int) -> None:
    model, mel, audio = memory.model_and_inputs(flows, tiny=True)
    model.double()
    mel, audio = mel.double(), audio.double()
    torch.testing.assert_close(memory.published_loss(model, mel, audio), WaveGlowLoss()(model((mel, audio))))
    assert all(loss().requires_grad for loss in [memory.loss_of(model, mel, audio, name) for name in VARIANTS])
