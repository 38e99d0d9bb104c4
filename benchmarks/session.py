"""What `make gpu` does on a machine with a GPU, in less than ten minutes: test, check memory accesses, measure.

    python -m benchmarks.session                # everything
    python -m benchmarks.session --without sanitize

It takes PyTorch with CUDA, Triton, pytest and the built libraries: no compiler, no network, and nothing installed. The
steps are the tests that need a GPU, in several processes, since Triton's kernels compile on the way, and beside them
compute-sanitizer on every CUDA kernel (`benchmarks.sanitize`); then, with the GPU to itself, `benchmarks.gpu`, whose
rows are stored in benchmarks/results. A step that fails does not stop the next; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import programs
from fastflow.bench import rows
from fastflow.ops import registry

ROOT = Path(__file__).parent.parent
MINUTES = 9.5
# At most so much of the time goes to the tests and the sanitizer, and then to torch.compile.
TESTS, COMPILE = 0.5, 0.25


def libraries() -> str:
    """Say which backends run here; return what is wrong, or nothing."""
    wrong = []
    for status in registry.status():
        print(f"{status.backend}: {'runs' if status.can_run else status.reason}", flush=True)
        if status.backend == "cuda" and not status.can_run:
            wrong.append(f"the CUDA kernels are neither tested nor measured: {status.reason}")
    return "; ".join(wrong)


def shards(tests: Sequence[str], count: int) -> list[list[str]]:
    """Deal tests out, those of the CUDA kernels first, should there not be time for all.

    Those of one function and backend that differ in length alone share compiled kernels.
    """
    groups: dict[str, list[str]] = {}
    for test in tests:
        groups.setdefault(re.sub(r"(?<=[\[-])\d+(?=[]-])", "", test), []).append(test)
    dealt: list[list[str]] = [[] for _ in range(count)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(dealt, key=len).extend(group)
    return [sorted(shard, key=lambda test: "[cuda" not in test) for shard in dealt if shard]


def test_files() -> list[str]:
    """Return the files with tests for a GPU: others import what such a machine may not have."""
    files = (ROOT / "tests").rglob("test_*.py")
    return sorted(str(file.relative_to(ROOT)) for file in files if "pytest.mark.gpu" in file.read_text("utf-8"))


def run_tests(seconds: float, paths: Sequence[str] | None = None) -> str:
    """Run the tests that need a GPU; return what is wrong, or nothing."""
    end = time.monotonic() + seconds
    pytest = programs.python("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    listing = [*pytest, "--collect-only", *(test_files() if paths is None else paths)]
    (collected,) = programs.run([listing], seconds)
    found = [line for line in collected.output.splitlines() if "::" in line]
    if collected.status or not found:
        return f"no tests were collected: {collected.output[-2000:]}"
    jobs = max(1, min(8, len(os.sched_getaffinity(0)) // 2))
    print(f"{len(found)} tests in {jobs} processes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for i, shard in enumerate(shards(found, jobs)):
            (names := Path(folder) / f"{i}.txt").write_text("\n".join(shard) + "\n")
            commands.append([*pytest, f"@{names}"])
        results = programs.run(commands, end - time.monotonic())
    wrong = set()
    for done in results:
        bad = done.status != 0
        print(done.output[-20_000:] if bad else done.output.splitlines()[-1], flush=True)
        if bad:
            late = f"tests were not through after {seconds:.0f} seconds"
            wrong.add(late if done.status is None else f"tests failed (status {done.status})")
    return "; ".join(sorted(wrong))


def module(seconds: float, name: str, *arguments: str) -> str:
    """Run a module of this folder; return what is wrong, or nothing."""
    command = programs.python(f"benchmarks.{name}", *arguments)
    ((status, _),) = programs.run([command], seconds, print_at_once=True)
    if status is None:
        return f"benchmarks.{name} was not through after {seconds:.0f} seconds"
    return f"benchmarks.{name} ended with status {status}" if status else ""


def measure(left: Callable[[], float], compile_seconds: float, commit: str) -> str:
    """Store rows for as long as there is time; return what is wrong, or nothing.

    First what takes no torch.compile, the most important first, as long as compiling still has its time. Then
    WaveGlow's synthesis once more, all variants taking turns. `max-autotune` is left out: it takes all there is.
    """
    common = ("--batch", "1", "--commit", commit)
    most = left() - compile_seconds
    minutes = f"{most / 60 - 0.25:.2f}"  # a case that has begun is finished
    plain = module(most, "gpu", *common, "--minutes", minutes, "--variants", "eager", "ours", "graph")
    synthesis = ("--part", "infer", "--dtype", "bfloat16", "--variants", "eager", "compile", "ours", "graph")
    return "; ".join(filter(None, (plain, module(left(), "gpu", *common, *synthesis))))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it; default {MINUTES:g}")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=("tests", "sanitize", "gpu"), help="leave out steps"
    )
    parser.add_argument("--commit", default=rows.commit(), help="what the rows say was measured; default: git's")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(1, f"PyTorch {torch.__version__} sees no GPU\n")
    start = time.monotonic()
    seconds = 60 * options.minutes

    def left() -> float:
        return max(0.0, seconds - (time.monotonic() - start))

    steps: dict[str, Callable[[], str]] = {
        "libraries": libraries,
        "tests": lambda: run_tests(TESTS * seconds),
        "sanitize": lambda: module(left(), "sanitize", "--seconds", f"{TESTS * seconds:.0f}"),
        "gpu": lambda: measure(left, COMPILE * seconds, options.commit),
    }
    results = {}
    for names in (["libraries"], ["tests", "sanitize"], ["gpu"]):
        names = [name for name in names if name not in options.without]
        if names:
            print(f"\n== {', '.join(names)}", flush=True)
            with ThreadPoolExecutor() as pool:  # of threads that wait for programs
                results |= dict(zip(names, pool.map(lambda name: steps[name](), names), strict=True))
    print(f"\n== after {time.monotonic() - start:.0f} seconds")
    for name, wrong in results.items():
        print(f"{name}: {wrong or 'good'}")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
