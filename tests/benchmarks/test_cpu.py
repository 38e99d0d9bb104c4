"""The benchmark for CPUs runs from end to end at toy sizes, each variant in a process, and gives no time to what is
wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import cpu
from benchmarks.cpu import CASES, COMPOSED, HIFI_GAN, OURS
from fastflow.bench import rows, text
from fastflow.bench.cases import Maker
from fastflow.bench.check import converted, wider, worst
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, COPY, RATE


def test_variants_take_turns_and_rows_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tiny", "--rounds", "2", "--threads", "1", "--out", str(tmp_path), "--commit", "abc"]
    variants = ["eager, kept", OURS, OURS + AGAIN, COMPOSED]
    arguments += ["--variants", *variants, "--note", "quiet"]
    assert cpu.main([*arguments, "--case", "WaveGlow-256, 400 frames", "--dtype", "float32"]) == 0
    stored = rows.read(tmp_path / rows.machine(torch.device("cpu")) / "cpu.json")
    assert [row.variant for row in stored] == [RATE, COPY, *variants]
    for row in stored:
        assert row.rounds == 2 and row.threads == 1 and row.min_ms and row.median_ms and not row.refused
        assert row.min_ms <= row.median_ms and row.rate == stored[0].rate > 0 and row.copy == stored[1].copy > 0
        assert row.about["commit"] == "abc" and row.about["note"] == "quiet" and row.peak_mb > 0
        if row.variant not in (RATE, COPY):
            assert row.error is not None and row.error <= row.bound and row.samples and row.flops and row.first_ms
    printed = capsys.readouterr().out
    assert "| 1.00 (1.00) |" in printed and "WaveGlow-256, 400 frames, float32, 1 threads" in printed
    assert "the same case timed against itself differs by at most" in printed


@pytest.mark.parametrize("dtype", cpu.DTYPES.values(), ids=str)
@pytest.mark.parametrize("case", CASES)
def test_ours_is_the_published_arithmetic(case: str, dtype: torch.dtype) -> None:
    problem = CASES[case](dtype, True)
    with torch.no_grad():
        plain = problem.published()(*problem.inputs)
        wide = problem.published().to(wider(dtype))(*converted(problem.inputs, wider(dtype)))
        row = Row("cpu", case, "", "", OURS)
        for ours in [problem.ours] + ([problem.composed] if problem.composed else []):
            worst(row, ours()(*problem.inputs), wide, plain, dtype)
            assert not row.refused and row.error and problem.cost.flops > 0


@torch.no_grad()
def test_what_else_is_timed_is_right() -> None:
    problem = CASES["WaveGlow-256, 20 frames"](torch.float32, True)
    plain = problem.published()(*problem.inputs)
    laid_out = cpu.variant_run(problem, cpu.CHANNELS_LAST, torch.float32, 1)
    torch.testing.assert_close(laid_out(), plain)
    own, run = cpu.yardstick(problem, torch.float32, True)
    torch.testing.assert_close(run(), own.expected.float())
    assert run().numel() == 2 * 256 and own.flops > 0


def test_only_what_takes_a_mel_has_hifi_gan_beside_it() -> None:
    assert HIFI_GAN in cpu.able(cpu.VARIANTS, "WaveGlow-256, 20 frames", "bfloat16")
    assert HIFI_GAN not in cpu.able(cpu.VARIANTS, "VITS stack, 10 s", "float32")


def test_sizes_cost_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """388 GFLOP per second of audio, of which the stacks are all but the convolutions around them."""
    monkeypatch.setattr(cpu, "Maker", lambda dtype, device, seed=0: Maker(dtype, "meta"))
    flowavenet = CASES["FloWaveNet stacks, 1 s"](torch.bfloat16, False)
    assert flowavenet.cost.flops / flowavenet.samples * 22050 == pytest.approx(388e9, rel=0.1)


def test_a_turn_is_one_long_run_or_many_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(
        [0.9, 0.002, 0.1, 0.2, 0.3]
    )  # of each run: the first fills a turn alone, then three do after a cold one
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += next(seconds)

    assert cpu.turn(run) == pytest.approx(900.0)
    assert cpu.turn(run) == pytest.approx(200.0)


def row(variant: str, median: float | None, refused: str = "") -> Row:
    return Row("cpu", "case", "", "float32", variant, median_ms=median, p20_ms=median, p80_ms=median, min_ms=median,
                  refused=refused, flops=1e9, rate=1e11)  # fmt: skip


def test_there_are_no_ratios_while_ours_is_wrong() -> None:
    eager, right = row("eager", 20.0), row(OURS, 10.0)
    wrong = replace(right, median_ms=None, min_ms=None, refused="output 0 is out of bounds")
    assert "2.00 (2.00)" in text.case_table([eager, right]) and "| 0.50 |" in text.case_table([eager, right])
    said = text.case_table([eager, wrong])
    assert "2.00" not in said and "No ratios: fastflow is wrong." in said and "out of bounds" in said
    assert "| eager | nan is no time |  |" in text.case_table([row("eager", None, "nan is no time"), right])


def test_a_process_that_ends_is_a_refused_row(tmp_path: Path) -> None:
    spec = {"case": "no such case", "dtype": "float32", "threads": 1, "tiny": True, "variant": "eager", "file": ""}
    worker = cpu.Worker(spec)
    worker.close()
    assert worker.row.refused == "its process ended: KeyError: 'no such case'" and worker.row.part == "cpu"


def test_what_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "NEEDS", {"openvino": ("no_such_package",)})
    taken: list[list[str]] = []

    def bench(spec: object, variants: list[str], rounds: int) -> list[tuple[Row, list[float]]]:
        taken.append(variants)
        return [(row(RATE, 1.0), [1.0]), (row(OURS, 1.0), [1.0])]

    monkeypatch.setattr(cpu, "bench", bench)
    arguments = ["--case", "VITS stack, 10 s", "--variants", "onnxruntime", "openvino", OURS, COMPOSED]
    arguments += ["--out", str(tmp_path)]
    assert cpu.main(arguments) == 0
    assert taken == [["onnxruntime", OURS], [OURS]]  # ONNX Runtime has no bfloat16, a stack alone nothing to compose
    assert "openvino is left out: no_such_package cannot be imported" in capsys.readouterr().out
