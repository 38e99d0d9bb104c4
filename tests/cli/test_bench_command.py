"""`fastflow bench` checks before it times, at toy sizes; two commits of a checkout are built and measured apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import fastflow
from fastflow.bench import compare, quick, rows, timing
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN
from fastflow.cli.main import main
from fastflow.ops import registry

PACKAGE = Path(fastflow.__file__).parent


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", "--tiny", "--rounds", "2", *arguments])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(timing.TURN_MS, "cpu", 1.0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_operation_and_a_whole_model_are_checked_and_timed(tmp_path: Path) -> None:
    result = run("--dtype", "float32", "--dtype", "bfloat16", "--threads", "1", "--json", str(tmp_path / "rows.json"))
    assert result.exit_code == 0, result.output
    found = rows.read(tmp_path / "rows.json")
    ours = quick.able(torch.device("cpu"))
    for dtype in ("float32", "bfloat16"):
        for op in ("infer", *quick.OPERATIONS):
            mine = {row.variant: row for row in found if (row.op, row.dtype) == (op, dtype)}
            assert set(mine) == {"eager", *ours, [*mine][-1]} and [*mine][-1].endswith(AGAIN)
            for row in mine.values():
                assert row.median_ms and row.p20_ms <= row.median_ms <= row.p80_ms and row.rounds == 2
                assert row.first_ms and row.rate > 0 and row.copy > 0 and row.bytes > 0 and row.threads == 1
                assert row.error <= row.bound and row.about["torch"] == torch.__version__ and row.cache
            assert (mine["eager"].samples > 0) == (op == "infer")
    assert "| `flow_step` | toy, 6 channels, 1 s, reverse | bfloat16 | eager |" in result.stdout
    assert "the same case timed against itself" in result.stdout and "| threads | 1 |" in result.stdout
    assert result.stdout.startswith("| fastflow bench |") and "wn_layer | toy" in result.stderr


def test_what_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry._implementations["reference"]["gate"]
    monkeypatch.setitem(registry._implementations["cpu"], "gate", lambda x: 1.001 * right(x))
    monkeypatch.setattr(registry, "_unsupported", lambda *_: None)
    monkeypatch.setattr(quick, "operations", lambda tiny: [case for case in quick.toy_cases() if case.op == "gate"])
    result = run("--backend", "cpu")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "`gate`" in line and "| cpu |" in line]
    assert line.replace(" ", "").endswith("|cpu|output0isoutofbounds|||||||")
    assert "no time for gate on cpu (output 0 is out of bounds)" in result.stderr


def test_it_needs_no_more_than_the_package_does() -> None:
    """Neither Triton nor plots nor peers."""
    hidden = ["triton", "matplotlib", "onnx", "onnxruntime", "openvino", "pytest", "benchmarks"]
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); "
    code += "from fastflow.cli.bench import bench; bench.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "--tiny", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| `actnorm` |" in done.stdout, done.stderr


def test_cases_that_there_is_no_time_for_are_named() -> None:
    """All but the first."""
    result = run("--minutes", "0", "--dtype", "float32", "--dtype", "bfloat16", "--threads", "1")
    assert result.exit_code == 0, result.output
    first, *others = result.stderr.splitlines()
    assert "left out" not in first and len(others) == 2 * (len(quick.operations(True)) + 1) - 1
    assert all(line.endswith(" is left out: 0 seconds are over") for line in others)
    op, case, _ = first.split(" | ")
    assert f"| `{op}` | {case} | float32 | eager |" in result.stdout


def test_published_sizes_are_there() -> None:
    assert {case.op for case in quick.operations(tiny=False)} == set(quick.OPERATIONS)
    assert set(quick.OPERATIONS) == set(registry.SCHEMAS)


# Two commits


def commit(folder: Path) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (["add", "-A"], [*identity, "commit", "-qm", "before"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout with one commit and, since then, a slower gate; its libraries are those that are built here."""
    folder = tmp_path / "checkout"
    shutil.copytree(PACKAGE, folder / "fastflow", ignore=shutil.ignore_patterns("*.so", "__pycache__", "assets"))
    (folder / ".gitignore").write_text("__pycache__\n*.so\n")
    (folder / "setup.py").touch()
    reference = folder / "fastflow" / "ops" / "gate" / "reference.py"
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commit(folder)
    reference.write_text(reference.read_text() + "\nraise_here = True\n")
    (folder / "fastflow" / "new.py").write_text("NEW = True\n")
    monkeypatch.setattr(rows, "checkout", lambda: folder)
    return folder


def test_both_sides_are_folders_of_their_own_and_leave_nothing_behind(checkout: Path) -> None:
    (checkout / "fastflow" / "bench" / "text.py").write_text("CHANGED = True\n")
    (checkout / "clips").mkdir()
    (checkout / "clips" / "of_a_data_set.wav").touch()
    with compare.trees(checkout, "HEAD") as (there, here):
        assert (here / "fastflow/new.py").exists() and not (there / "fastflow/new.py").exists()
        assert (here / "setup.py").exists() and not (here / "clips").exists()
        assert "raise_here" in (here / "fastflow/ops/gate/reference.py").read_text()
        assert "raise_here" not in (there / "fastflow/ops/gate/reference.py").read_text()
        for side in (there, here):  # one program measures both
            assert (side / "fastflow/bench/text.py").read_text() == "CHANGED = True\n"
        place = there
    assert not place.exists()
    listed = subprocess.check_output(["git", "worktree", "list"], cwd=checkout, text=True)
    assert len(listed.splitlines()) == 1
    with pytest.raises(compare.CompareError, match="git rev-parse failed"), compare.trees(checkout, "no-such-commit"):
        pass


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was built; the libraries that are built here stand in."""
    folders = []

    def build(folder: Path, cuda: bool) -> None:
        folders.append((folder.name, cuda))
        for library in PACKAGE.glob("_cpu.so"):
            shutil.copy(library, folder / "fastflow")

    monkeypatch.setattr(compare, "build", build)
    monkeypatch.setattr(compare, "TURN_MS", 1.0)
    return folders


def test_two_commits_are_timed_taking_turns(checkout: Path, tmp_path: Path, built: list[tuple[str, bool]]) -> None:
    result = run("--compare", "HEAD", "--threads", "1", "--json", str(tmp_path / "rows.json"))
    assert result.exit_code == 0, result.output
    assert built == [("there", False), ("here", False)]
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {one["row"]["op"] for one in found} == {"infer", *quick.OPERATIONS}
    for one in found:
        assert len(one["there"]) == len(one["here"]) == len(one["again"]) == 2 and not one["refused"]
        there, here = one["about_there"], one["row"]["about"]
        assert here["commit"] == there["commit"] + "-dirty" and here["device"] == there["device"]
        assert here["torch"] == there["torch"] == torch.__version__ and one["row"]["threads"] == 1
    assert "| HEAD, ms | working tree, ms | HEAD / working tree [20 %, 80 %] |" in result.stdout


def test_two_dtypes_are_built_once_and_cases_stop_after_the_minutes(
    checkout: Path, built: list[tuple[str, bool]]
) -> None:
    result = run("--compare", "HEAD", "--threads", "1", "--minutes", "0", "--dtype", "float32", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert built == [("there", False), ("here", False)]
    lines = [line for line in result.stderr.splitlines() if " | " in line]
    assert not lines[0].endswith(" are over") and all(line.endswith(": 0 seconds are over") for line in lines[1:])
    assert len(lines) == 2 * (len(quick.operations(True)) + 1) and result.stdout.count("| float32 |") == 1


class Side:
    """Stands in for a side's process."""

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def ask(self, question: str | None) -> Any:
        row = Row("bench", "toy", "gate", "float32", "", refused=self.refused, about={"commit": "abc"})
        return 1.0 if question is None else asdict(row)


@pytest.mark.parametrize(
    ("there", "here", "refused", "wrong"),
    [
        ("", "", "", False),
        (compare.LACKING, "", "the commit has no such operation", False),
        ("output 0 is out of bounds", "", "the commit: output 0 is out of bounds", True),
        ("", "RuntimeError: no", "the working tree: RuntimeError: no", True),
    ],
)
def test_an_operation_that_a_commit_lacks_is_not_wrong(
    monkeypatch: pytest.MonkeyPatch, there: str, here: str, refused: str, wrong: bool
) -> None:
    sides = [Side(there), Side(here), Side(here)]
    one = compare.one_case(sides, "gate | toy | float32", 2)  # type: ignore[arg-type]
    assert (one.refused, one.wrong, len(one.there)) == (refused, wrong, 0 if refused else 2)
    monkeypatch.setattr(compare, "compare", lambda *_, **__: iter([one]))
    result = run("--compare", "HEAD")
    assert result.exit_code == wrong
    assert (f"no time for gate, toy, float32 ({refused})" in result.stderr) == wrong


def test_a_case_that_raises_is_named_beside_one_that_the_commit_lacks(
    checkout: Path, built: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ops, model = checkout / "fastflow" / "ops" / "__init__.py", checkout / "fastflow" / "models" / "waveglow.py"
    now = ops.read_text()
    ops.write_text(now + '\nregistry.SCHEMAS.pop("actnorm")\n')
    commit(checkout)
    ops.write_text(now)
    model.write_text(
        model.read_text() + '\n\ndef no(*_, **__):\n    raise RuntimeError("no")\nWaveGlow.__init__ = no\n'
    )
    toys = [case for case in quick.operations(tiny=True) if case.op in ("gate", "actnorm")]
    monkeypatch.setattr(quick, "operations", lambda tiny: toys)
    result = run("--compare", "HEAD", "--threads", "1")
    assert result.exit_code == 1, result.output
    said = "no time for infer, WaveGlow, float32 (the working tree: RuntimeError: no)"
    assert result.stderr.splitlines()[-1].endswith(said)
    assert "| the commit has no such operation |" in result.stdout and "| `gate` |" in result.stdout


def test_ratios_are_of_the_same_round() -> None:
    assert compare.spread([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == pytest.approx((3.0, 2.4, 3.6))
    row = Row("bench", "size", "gate", "float32", "cpu")
    found = [
        compare.Comparison(row, there=[2.0, 2.0], here=[1.0, 1.0], again=[1.0, 1.0]),
        compare.Comparison(row, refused="there: output 0 is out of bounds", there=[2.0]),
    ]
    text = compare.markdown("v1", found)
    assert "| 2.00 | 1.00 | 2.000 [2.000, 2.000] | 1.000 [1.000, 1.000] |" in text
    assert "| cpu | there: output 0 is out of bounds |  |  |  |" in text


def test_an_installed_copy_has_no_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "__file__", "/usr/lib/python3/site-packages/fastflow/bench/rows.py")
    result = run("--compare", "HEAD")
    assert result.exit_code == 2 and "is not a checkout of fastflow" in result.stderr
    assert rows.commit() == "unknown"
