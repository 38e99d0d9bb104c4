"""The benchmark for GPUs runs from end to end on the CPU, at toy sizes, and gives no time to what is wrong."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.backends import registry as compilers

from benchmarks import gpu
from fastflow.bench import check, models, timing
from fastflow.bench.published import PublishedWaveGlow
from fastflow.bench.rows import Row, machine
from fastflow.ops import registry


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.TURN_MS, "cpu", 1.0)


def run(tmp_path: Path, *arguments: str) -> int:
    common = ["--device", "cpu", "--tiny", "--rounds", "2", "--batch", "2", "--seconds", "1", "--commit", "abc"]
    return gpu.main([*common, "--out", str(tmp_path), *arguments])


def rows(tmp_path: Path, part: str) -> list[dict[str, object]]:
    loaded: list[dict[str, object]] = json.loads((tmp_path / machine(torch.device("cpu")) / f"{part}.json").read_text())
    return loaded


def test_everything_runs_and_rows_are_stored(tmp_path: Path) -> None:
    assert run(tmp_path, "--variants", "eager", "tuned", "ours", "graph") == 0
    ops = rows(tmp_path, "ops")
    assert {row["op"] for row in ops} == {*registry.SCHEMAS, *registry.BACKWARD_SCHEMAS}
    assert {row["dtype"] for row in ops} == {"float32", "bfloat16", "float16"}
    blocks, infer = rows(tmp_path, "blocks"), rows(tmp_path, "infer")
    assert len(blocks) == 2 * 2 * 3 and len(infer) == 4 * 3 + 2
    beside = {row["variant"] for row in infer if row["dtype"] == "bfloat16"}
    beside -= {row["variant"] for row in infer if row["dtype"] == "float16"}
    assert beside == {"eager float16", gpu.HIFI_GAN}
    device = rows(tmp_path, "device")
    assert [(row["op"], row["dtype"], row["flops"]) for row in device] == [
        ("matrix product", "bfloat16", 2 * 64**3),
        ("copy", "bfloat16", 0),
    ]
    for row in [*ops, *blocks, *infer, *device]:
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["refused"] == ""
        assert row["error"] <= row["bound"]
        assert row["about"]["commit"] == "abc" and row["about"]["torch"] == torch.__version__
    assert all(row["samples"] == 2 * 2 * 8 for row in infer)


def test_tensorrt_runs_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of its name stands in that runs the graph as it is."""
    arguments = ["--part", "infer", "--variants", "eager", gpu.TENSORRT]
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit):
            run(tmp_path, *arguments)
    package = types.ModuleType("torch_tensorrt")
    package.__spec__ = importlib.machinery.ModuleSpec("torch_tensorrt", None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    seen = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.append(graph)
        return graph.forward

    monkeypatch.setitem(compilers._BACKENDS, "torch_tensorrt", None)
    monkeypatch.setitem(compilers._COMPILER_FNS, "torch_tensorrt", compiler)
    assert run(tmp_path, *arguments) == 0
    timed = [row for row in rows(tmp_path, "infer") if row["variant"] == gpu.TENSORRT]
    assert seen and len(timed) == 3 and all(row["median_ms"] > 0 for row in timed)


def test_what_matters_most_comes_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The GPU's own rates, WaveGlow-256's synthesis in bfloat16, its gated stack, then the rest."""
    order: list[str] = []
    monkeypatch.setattr(gpu.Bench, "run", lambda bench, work, *rest: order.append(work.name))
    monkeypatch.setattr(gpu, "toy_cases", lambda: gpu.CASES)
    arguments = ["--device", "cpu", "--tiny", "--commit", "abc"]
    assert gpu.main(arguments) == 0
    assert order[:11] == [
        "device",
        "infer | 11 frames, batch 1 | torch.bfloat16",
        "infer | 2 frames, batch 1 | torch.bfloat16",
        "wn_layer | WaveGlow-256, 10 s, batch 1 | torch.bfloat16",
        "wn | WaveGlow-256, 10 s, batch 1 | torch.bfloat16",
        "wn_layer | WaveGlow-256, 1 s, batch 1 | torch.bfloat16",
        "wn | WaveGlow-256, 1 s, batch 1 | torch.bfloat16",
        "infer | 11 frames, batch 1 | torch.float16",
        "infer | 2 frames, batch 1 | torch.float16",
        *order[9:11],
    ]
    total = len(order)
    order.clear()
    capsys.readouterr()
    assert gpu.main([*arguments, "--minutes", "0"]) == 0
    assert not order and f"{total} cases were left out: 0 minutes are over" in capsys.readouterr().out


def test_a_gated_stack_is_also_timed_on_inputs_laid_out_as_modules_do(tmp_path: Path) -> None:
    arguments = ["--part", "ops", "--op", "wn_layer", "--dtype", "float32", "--backend", "triton", "reference"]
    assert run(tmp_path, *arguments) == 0
    made = {str(row["variant"]): row for row in rows(tmp_path, "ops")}
    assert set(made) == {"eager", "triton", "triton laid out", "reference"}
    assert all(row["median_ms"] and not row["refused"] for row in made.values())


def test_laid_out_channels_lie_beside_each_other() -> None:
    x, weight, rest = torch.randn(2, 3, 5), torch.randn(4, 3), [None, 1, [torch.randn(6, 3, 3)]]
    turned, same, (_, one, (taps,)) = models.laid_out((x, weight, rest))
    assert torch.equal(turned, x) and turned.stride() == (15, 1, 3) and same is weight and one == 1
    assert torch.equal(taps, rest[2][0]) and taps.stride() == (9, 1, 3)


def test_a_later_run_replaces_its_own_rows_only(tmp_path: Path) -> None:
    arguments = ["--part", "blocks", "--variants", "eager"]
    assert run(tmp_path, *arguments, "--dtype", "float32") == 0
    assert run(tmp_path, *arguments, "--dtype", "float32", "bfloat16", "--rounds", "3") == 0
    assert sorted((row["case"], row["dtype"], row["rounds"]) for row in rows(tmp_path, "blocks")) == [
        ("Glow-TTS, 40 steps, batch 1", "bfloat16", 3),
        ("Glow-TTS, 40 steps, batch 1", "float32", 3),
        ("VITS, 40 steps, batch 1", "bfloat16", 3),
        ("VITS, 40 steps, batch 1", "float32", 3),
    ]


def test_torch_compile_is_timed_too(tmp_path: Path) -> None:
    arguments = ["--part", "blocks", "--dtype", "float32", "--variants", "compile", "ours"]
    assert run(tmp_path, *arguments) == 0
    assert {row["variant"] for row in rows(tmp_path, "blocks")} == {"compile", "reference"}


def test_what_ours_is_compared_with_compiles_whole() -> None:
    model = models.waveglow(tiny=True)
    whole = torch.compile(PublishedWaveGlow(model), backend="eager", fullgraph=True)
    mel, z = torch.randn(1, 4, 3), torch.randn(1, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(whole(mel, z, 0.6), model.infer(mel, 0.6, z=z))


@pytest.mark.parametrize("wrong", ["off", "nan", "raises"])
def test_what_is_wrong_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = registry._implementations["reference"]["gate"]
    calls = []

    def gate(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if wrong == "raises":
            raise ValueError("no")
        return right(x) * (float("nan") if wrong == "nan" else 1.001)

    monkeypatch.setitem(registry._implementations["cpu"], "gate", gate)
    monkeypatch.setattr(gpu, "use_backend", lambda name: contextlib.nullcontext())
    arguments = [
        "--backend",
        "cpu",
        "--part",
        "ops",
        "--op",
        "gate",
        "--dtype",
        "float32",
        "--variants",
        "eager",
        "ours",
    ]
    assert run(tmp_path, *arguments) == 1
    (ours, eager) = sorted(rows(tmp_path, "ops"), key=lambda row: str(row["variant"]))
    assert eager["median_ms"] and not eager["refused"]
    assert ours["median_ms"] is None
    assert ours["refused"] == ("ValueError: no" if wrong == "raises" else "output 0 is out of bounds")
    assert len(calls) == 1


GATE = ["--part", "ops", "--op", "gate", "--dtype", "float32", "bfloat16"]


def test_where_every_variant_is_refused_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured is a refused row: here, everything, for want of a GPU."""
    monkeypatch.setattr(gpu.Bench, "wants", lambda self, variant: variant == "graph")
    assert run(tmp_path, *GATE) == 1
    refused = rows(tmp_path, "ops")
    assert [(row["dtype"], row["variant"]) for row in refused] == [
        (dtype, variant) for dtype in ("float32", "bfloat16") for variant in ("eager graph", "reference graph")
    ]
    assert all(row["refused"] and row["median_ms"] is None for row in refused)


def test_a_case_that_raises_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = registry._implementations["reference"]["gate"]

    def gate(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:  # what float32 is checked against
            raise ValueError("no")
        return right(x)

    monkeypatch.setitem(registry._implementations["reference"], "gate", gate)
    assert run(tmp_path, *GATE, "--variants", "ours") == 1
    (row,) = rows(tmp_path, "ops")
    assert row["dtype"] == "bfloat16" and row["median_ms"]
    assert f"gate | {row['case']} | torch.float32 | FAILED: ValueError: no" in capsys.readouterr().out


def row_of(op: str) -> Row:
    return Row("ops", "", op, "float32", "")


def test_a_log_determinant_is_measured_by_its_terms() -> None:
    y, log_det = torch.ones(2, 4, 100), torch.zeros(2)
    expected = [y.double(), torch.full((2,), 1e-9).double()]
    for op, off, refused in (
        ("actnorm", 1e-3, ""),
        ("actnorm", 1e-2, "output 1 is out of bounds"),
        ("gate", 1e-3, "output 1 is out of bounds"),
    ):
        row = row_of(op)
        check.worst(row, [y, log_det + off], expected, [y, log_det], torch.float32)
        assert row.refused == refused


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU is available" in capsys.readouterr().err


def test_the_published_model_is_ours() -> None:
    model = models.waveglow(tiny=True).double()
    mel, z = torch.randn(2, 4, 5).double(), torch.randn(2, 4, 10).double()
    with torch.no_grad():
        expected = PublishedWaveGlow(model)(mel, z, 0.6)
    torch.testing.assert_close(model.infer(mel, 0.6, z=z), expected)
    torch.testing.assert_close(expected.std(), torch.tensor(0.6).double(), rtol=0.5, atol=0)
