"""Two commits of a checkout beside each other: each built and run in a folder of its own, in processes taking turns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastflow.bench import quick, rows
from fastflow.bench.check import DTYPES, no_tf32, worst
from fastflow.bench.processes import Answers, Ended, Process
from fastflow.bench.rows import Row
from fastflow.bench.text import figure, table
from fastflow.bench.timing import Run
from fastflow.ops import registry

TURN_MS = 50.0  # what is timed at once: shorter calls are made several times
LACKING = "has no such operation"
# What a build takes of the files that git does not know yet: what else lies in a checkout may be a data set.
SOURCES = ("fastflow", "csrc", "setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in")


class CompareError(Exception):
    """Two commits cannot be compared; the message says why."""


# One side, in a process of its own and in the folder of its commit


@torch.no_grad()
def side(spec: dict[str, Any]) -> None:
    """Answer where this fastflow lies; then for the name of a case its row, and for null a turn's milliseconds."""
    answers = Answers()
    device, dtype = torch.device(spec["device"]), spec["dtype"]
    no_tf32()
    if device.type == "cpu":
        torch.set_num_threads(spec["threads"])
    folder = Path(__file__).parents[2]
    answers.send(str(folder))
    about = rows.about(device, spec["commits"][folder.name])
    backends = spec["backends"] or quick.able(device)
    cases = quick.subjects(device, dtype, backends, spec["tiny"])
    subject: quick.Subject | None = None
    run: Run
    count = number = 0
    for question in answers.questions():
        if question is not None:
            subject = None
            op, case, _ = question.split(" | ")
            row = Row("bench", case, op, dtype, "")
            try:
                if op == "infer" or op in registry.SCHEMAS:
                    subject = cases[question]()
                    row, name = subject.row, list(subject.runs)[-1]  # the backend asked for, or what there is
                    row.variant, run = name, subject.runs[name]
                    worst(row, run(0), *subject.results(), DTYPES[dtype])
                    count = max(1, min(1000, round(TURN_MS / max(subject.clock.once(run, 0, 1), 1e-3))))
                else:
                    row.refused = LACKING
            except Exception as error:
                row.refused = f"{type(error).__name__}: {error}".splitlines()[0]
            row.about, row.threads = about, torch.get_num_threads()
            answers.send(asdict(row))
        else:
            assert subject is not None
            answers.send(subject.clock.once(run, number, count))
            number += count


# Both sides


@dataclass
class Comparison:
    """One case: milliseconds of each round, of the other commit, of what is here, and of what is here once more."""

    row: Row  # of what is here
    about_there: dict[str, str] = field(default_factory=dict)  # as `row.about`
    refused: str = ""
    wrong: bool = False  # refused, and not only because the other commit is older than the operation
    there: list[float] = field(default_factory=list)
    here: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


def git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise CompareError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise CompareError(f"git {arguments[0]} failed: {said[0] if said else error.returncode}") from error
    return done.stdout


@contextlib.contextmanager
def trees(checkout: Path, revision: str) -> Iterator[tuple[Path, Path]]:
    """Yield two folders: the commit, and what is in the checkout now, changes and new sources included."""
    commit = git(checkout, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").strip()
    with tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder:
        there, here = Path(folder) / "there", Path(folder) / "here"
        git(checkout, "worktree", "add", "--detach", str(there), commit)
        try:
            known = git(checkout, "ls-files", "-z")
            new = git(checkout, "ls-files", "-o", "--exclude-standard", "-z", "--", *SOURCES)
            for name in (known + new).split("\0"):
                if name and (checkout / name).is_file():
                    (here / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(checkout / name, here / name)
            # One program measures both: this one.
            shutil.rmtree(there / "fastflow" / "bench", ignore_errors=True)
            shutil.copytree(here / "fastflow" / "bench", there / "fastflow" / "bench")
            yield there, here
        finally:
            git(checkout, "worktree", "remove", "--force", str(there))


def build(folder: Path, cuda: bool) -> None:
    """Build a folder's libraries in place."""
    environment = os.environ | ({} if cuda else {"FASTFLOW_BUILD_CUDA": "0"})
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise CompareError(f"building in {folder.name} failed: {said[-1] if said else done.returncode}")


@contextlib.contextmanager
def processes(folders: Sequence[Path], spec: dict[str, Any]) -> Iterator[list[Process]]:
    """Yield a side for each folder, started at once."""
    threads = str(spec["threads"])
    with contextlib.ExitStack() as stack:
        sides = []
        for folder in folders:
            environment = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            side = Process("fastflow.bench.compare", [json.dumps(spec)], folder=folder, environment=environment)
            stack.callback(side.close)
            sides.append(side)
        for folder, side in zip(folders, sides, strict=True):
            try:
                place = side.answer()
            except Ended as error:
                raise CompareError(f"what is {folder.name} cannot be measured: {error}") from error
            assert Path(place).resolve() == folder.resolve(), place
        yield sides


def compare(
    revision: str,
    spec: dict[str, Any],
    dtypes: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Iterator[Comparison]:
    """Yield each case, timed on a commit and on what is in the checkout now.

    Args:
        revision: the commit, in git's spelling.
        spec: device, backends (none: the fastest on each side), threads, tiny.
        seconds: no case but the first is started when these are over; they count from when both sides are built.

    Raises:
        CompareError: no checkout, no such commit, or one of the two cannot be built or run.
    """
    try:
        checkout = rows.checkout()
    except OSError as error:
        raise CompareError(str(error)) from error
    with trees(checkout, revision) as (there, here):
        commits = {
            there.name: git(there, "describe", "--always", "--abbrev=12").strip(),
            here.name: rows.commit(),
        }
        for folder in (there, here):
            say(f"building {revision if folder is there else 'the working tree'}")
            build(folder, spec["device"].startswith("cuda"))
        limit, device = quick.Limit(seconds, say), torch.device(spec["device"])
        for dtype in dtypes:
            with contextlib.ExitStack() as stack:
                sides: list[Process] = []  # not started for cases that are all left out
                for name in quick.subjects(device, dtype, (), spec["tiny"]):
                    if not limit.starts(name):
                        continue
                    its = spec | {"dtype": dtype, "commits": commits}
                    sides = sides or stack.enter_context(processes((there, here, here), its))
                    try:
                        yield one_case(sides, name, rounds)
                    except Ended as error:
                        raise CompareError(f"{name}: {error}") from error


def one_case(sides: Sequence[Process], name: str, rounds: int) -> Comparison:
    """Have every side check a case, then time it, taking turns."""
    answers = [Row(**process.ask(name)) for process in sides]
    there, here = answers[:2]
    found = Comparison(here, there.about)
    found.refused = "; ".join(
        f"{who} {LACKING}" if row.refused == LACKING else f"{who}: {row.refused}"
        for who, row in (("the commit", there), ("the working tree", here))
        if row.refused
    )
    found.wrong = bool(here.refused) or there.refused not in ("", LACKING)
    if found.refused:
        return found
    columns = (found.there, found.here, found.again)
    order = list(zip(sides, columns, strict=True))
    for process in sides:
        process.ask(None)  # a turn to warm up
    for r in range(rounds):
        for process, times in order[r % 3 :] + order[: r % 3]:
            times.append(process.ask(None))
    return found


def spread(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """Return the median ratio of the rounds, and its 20 and 80 percent quantiles."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    quantiles = statistics.quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios * 9
    return statistics.median(ratios), quantiles[1], quantiles[7]


def markdown(revision: str, found: Sequence[Comparison]) -> str:
    """Return what to paste into a pull request: times, and ratios beside those of the working tree to itself."""
    lines = []
    for one in found:
        what = [f"`{one.row.op}`", one.row.case, one.row.dtype, one.row.variant]
        if one.refused:
            lines.append([*what, one.refused, "", "", ""])
            continue
        cells = []
        for numerators, denominators in ((one.there, one.here), (one.again, one.here)):
            ratio, low, high = spread(numerators, denominators)
            cells.append(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
        lines.append([*what, *(figure(statistics.median(times)) for times in (one.there, one.here)), *cells])
    head = ["operation", "size", "dtype", "variant", f"{revision}, ms", "working tree, ms"]
    head += [f"{revision} / working tree [20 %, 80 %]", "working tree / itself"]
    return table(head, lines, 4) + "\nAbove 1, the working tree is faster. The last column is the noise of the run.\n"


if __name__ == "__main__":
    side(json.loads(sys.argv[1]))
