"""What surrounds a session on a GPU: programs with a time limit, tests dealt out, every step's verdict in the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import programs, sanitize, session
from benchmarks.programs import Done
from fastflow import BackendError
from fastflow.ops import registry

ROOT = Path(__file__).parents[2]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# programs


def test_programs_run_side_by_side_and_their_output_is_kept_apart() -> None:
    start = time.monotonic()
    commands = [["sh", "-c", f"sleep 0.5; echo out {i}; echo err {i} >&2; exit {i}"] for i in range(3)]
    assert programs.run(commands, 20) == [Done(i, f"out {i}\nerr {i}\n") for i in range(3)]
    assert time.monotonic() - start < 1.4


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    late = tmp_path / "late"
    command = ["sh", "-c", f"echo begun; (sleep 1; touch {late}) & wait"]
    assert programs.run([command, ["true"]], 0.4) == [Done(None, "begun\n"), Done(0, "")]
    time.sleep(1)
    assert not late.exists()


def test_output_can_go_straight_through(capfd: pytest.CaptureFixture[str]) -> None:
    assert programs.run([["echo", "now"]], 20, print_at_once=True) == [Done(0, "")]
    assert capfd.readouterr().out == "now\n"


# the tests


def test_every_test_is_dealt_once_and_those_that_differ_in_length_stay_together() -> None:
    names = [
        f"test_gpu.py::test_{f}[{b}-{t}-case {c}]"
        for f in "ab"
        for b in ("triton", "cuda")
        for t in (1, 33)
        for c in "xyz"
    ]
    dealt = session.shards(names, 3)
    assert sorted(name for shard in dealt for name in shard) == sorted(names)
    assert len(dealt) == 3 and all(len(shard) == 8 for shard in dealt)
    for shard in dealt:
        assert all((name.replace("-33-", "-1-") in shard) == (name.replace("-1-", "-33-") in shard) for name in shard)
        assert [name for name in shard if "[cuda" in name] == shard[: sum("[cuda" in name for name in shard)]
    assert session.shards(["one"], 8) == [["one"]]


def test_files_with_gpu_tests_import_what_is_on_a_gpu_machine() -> None:
    """Neither sound nor plots: PyTorch, Triton and pytest."""
    files = session.test_files()
    known = {"tests/ops/test_gpu.py", "tests/models/test_waveglow_on_gpu.py", "tests/train/test_convergence.py"}
    assert known == set(files)
    hidden = [
        "click",
        "librosa",
        "matplotlib",
        "pesq",
        "pybind11",
        "pystoi",
        "safetensors",
        "soundfile",
        "soxr",
        "tqdm",
    ]
    arguments = ["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *files]
    program = f"import sys, pytest; sys.modules.update(dict.fromkeys({hidden})); sys.exit(pytest.main({arguments}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the project's."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    return tmp_path


TOY = """
import pytest
pytestmark = pytest.mark.{mark}
@pytest.mark.parametrize("i", range(3))
def test_toy(i): {body}
"""


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("pass", ""),
        ("assert i", "tests failed (status 1)"),
        ("import time; time.sleep(60)", "tests were not through after 6 seconds"),
    ],
)
def test_tests_run_and_what_is_wrong_is_said(
    project: Path, capsys: pytest.CaptureFixture[str], body: str, wrong: str
) -> None:
    (project / "test_toy.py").write_text(TOY.format(mark="gpu", body=body))
    assert session.run_tests(6 if "sleep" in body else 60, ["test_toy.py"]) == wrong
    printed = capsys.readouterr().out
    assert printed.startswith("3 tests in ") and (" passed" in printed) == ("sleep" not in body)
    assert ("assert 0" in printed) == (body == "assert i")


def test_tests_that_cannot_be_imported_are_named(project: Path) -> None:
    (project / "test_toy.py").write_text("import nothing_of_the_kind")
    wrong = session.run_tests(60, ["test_toy.py"])
    assert wrong.startswith("no tests were collected: ") and "nothing_of_the_kind" in wrong


# the session


def test_every_step_runs_and_one_that_fails_shows_in_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, ...]] = []
    verdicts = {"sanitize": "benchmarks.sanitize ended with status 1"}

    def module(seconds: float, name: str, *arguments: str) -> str:
        assert 0 < seconds <= 600
        ran.append((name, *arguments))
        return verdicts.get(name, "")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session, "libraries", lambda: "")
    monkeypatch.setattr(session, "run_tests", lambda seconds: ran.append(("tests",)) or "")
    monkeypatch.setattr(session, "module", module)
    assert session.main(["--commit", "abc"]) == 1
    printed = capsys.readouterr().out
    assert "libraries: good\ntests: good\nsanitize: benchmarks.sanitize ended with status 1\ngpu: good\n" in printed
    assert sorted(name for name, *_ in ran[:2]) == ["sanitize", "tests"]
    assert [name for name, *_ in ran[2:]] == ["gpu", "gpu"]
    assert "compile" not in ran[2] and "compile" in ran[3]
    assert all(arguments[arguments.index("--commit") + 1] == "abc" for arguments in ran[2:])
    ran.clear()
    verdicts.clear()
    assert session.main(["--without", "sanitize", "tests"]) == 0
    assert [name for name, *_ in ran] == ["gpu", "gpu"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        session.main([])
    assert stopped.value.code == 1 and "sees no GPU" in capsys.readouterr().err


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [registry.BackendStatus("reference", True, ""), registry.BackendStatus("cuda", False, "it is not built")]
    monkeypatch.setattr(registry, "status", lambda: rows)
    assert session.libraries() == "the CUDA kernels are neither tested nor measured: it is not built"


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("exit 0", ""),
        ("exit 3", "benchmarks.toy ended with status 3"),
        ("sleep 60", "benchmarks.toy was not through after 1 seconds"),
    ],
)
def test_a_module_s_end_is_told(monkeypatch: pytest.MonkeyPatch, command: str, wrong: str) -> None:
    monkeypatch.setattr(programs, "python", lambda *words: ["sh", "-c", command])
    assert session.module(1 if "sleep" in command else 60, "toy") == wrong


# the sanitizer

SANITIZER = {
    "clean": ("echo $2 $*", ""),
    "finding": ('echo "=== Invalid read"; exit 9', "racecheck found something: see above"),
    "breaking": ("echo no device; exit 255", "racecheck failed with status 255: see above"),
    "hanging": ("sleep 60", "racecheck was not through after 1 seconds"),
}


@pytest.mark.parametrize("kind", SANITIZER)
def test_what_a_sanitizer_finds_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text, wrong = SANITIZER[kind]
    fake = script(tmp_path / "compute-sanitizer", f"[ $2 = memcheck ] && exit 0\n{text}")
    said = sanitize.check(fake, ["memcheck", "racecheck"], 1 if kind == "hanging" else 60)
    assert said == ([wrong] if wrong else [])
    printed = capsys.readouterr().out
    assert printed.startswith("memcheck:\n") and "racecheck:\n" in printed
    if kind == "clean":
        assert "--error-exitcode=9 --kernel-regex kns=fastflow" in printed
        assert printed.rstrip().endswith("-m benchmarks.sanitize --only-run")


@pytest.fixture
def sanitizer_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a sanitizer on PATH, into CUDA_HOME, or nowhere."""

    def place(where: str) -> None:
        home = tmp_path / "cuda"
        (home / "bin").mkdir(parents=True)
        if where != "nowhere":
            script(home / "bin/compute-sanitizer", "exit 0")
        monkeypatch.setenv("PATH", str(home / "bin") if where == "PATH" else str(tmp_path))
        monkeypatch.setenv("CUDA_HOME", str(home))
        monkeypatch.setattr(sanitize, "USUAL", str(tmp_path / "none"))

    return place


@pytest.mark.parametrize("where", ["PATH", "CUDA_HOME"])
def test_the_sanitizer_is_found(
    where: str, sanitizer_at: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    sanitizer_at(where)
    assert sanitize.main(["--tool", "memcheck"]) == 0
    assert capsys.readouterr().out.endswith("memcheck: nothing found\n")


def test_a_missing_sanitizer_is_named(sanitizer_at: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    sanitizer_at("nowhere")
    with pytest.raises(SystemExit) as stopped:
        sanitize.main([])
    assert stopped.value.code == 1
    assert "compute-sanitizer was not found on PATH, in CUDA_HOME/bin or in " in capsys.readouterr().err


def test_every_operation_is_called_in_every_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    made = list(sanitize.calls())
    assert {case.op for _, case, _, _ in made} == {*registry.SCHEMAS, *registry.BACKWARD_SCHEMAS}
    assert len({name for name, *_ in made}) == len(made)
    for op in registry.SCHEMAS:
        assert {(dtype, tf32) for _, case, dtype, tf32 in made if case.op == op} == {
            (torch.bfloat16, False),
            (torch.float16, False),
            (torch.float32, False),
            (torch.float32, True),
            (torch.float64, False),
        }


def test_the_calls_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = [call for call in sanitize.calls() if not call[0].split(" | ")[1].startswith("WaveGlow")]
    monkeypatch.setattr(sanitize, "calls", lambda: iter(short))
    assert sanitize.main(["--only-run", "--device", "cpu", "--backend", "reference"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*(name for name, *_ in short), f"{len(short)} calls"]


def test_a_backend_that_cannot_run_is_an_error() -> None:
    with pytest.raises(BackendError, match="backend 'cuda' cannot run"):
        sanitize.main(["--only-run", "--device", "cpu"])
