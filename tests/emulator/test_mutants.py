"""Faults injected into the kernels must be noticed, or the emulator proves nothing.

The emulator knows every place where a kernel calls one of the `arch/` wrappers, and can skip a call that synchronises
or shift an address, a coordinate or a count there. Each such mutant of each kernel must give wrong bits, or an error,
under at least one of a few schedules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastflow import ops
from tests.emulator import library
from tests.ops import test_contract as contract
from tests.ops.cases import Case, _actnorm, _affine, _flow_step, _gate, _invconv, _wn, _wn_layer

KERNELS = library.ROOT / "csrc" / "cuda" / "kernels"

SCHEDULES = (
    ("in order", 1, "late"),
    ("one warp last", 11, "late"),  # a consumer's
    ("one warp last", 0, "random"),  # the loader's
    ("reverse", 0, "early"),
    ("random", 1, "random"),
)
"""Order of threads, its seed, and when copies arrive; those that catch most come first."""

STEPS = {
    "address": (0,),  # the size of the access
    "destination": (16,),
    "source": (16,),
    "lane": (-1,),  # or the mask
    "value": (-1, 1),
    "groups": (1,),  # leaves one group more under way; one less is no fault
    "parity": (1,),
    "count": (-1, 1),
    "bytes": (-16, 16),
    "rank": (1,),
    "c0": (1,),
    "c1": (1,),
    "c2": (1,),
    "c3": (1,),
    "a": (32,),  # the next 16 of the depth
    "b": (32,),
}
"""How far each operand is shifted."""


class Run(NamedTuple):
    """A call on a pretended device."""

    case: Case
    length: int
    dtype: torch.dtype = torch.float32
    capability: int = 75
    multiprocessors: int = 3
    backward: bool = False
    variant: str = ""  # of the kernel


class Group(NamedTuple):
    """Runs that reach the kernels in `files`.

    Each mutant of these must be caught in one run; those that skip a call, in one run of each variant that has it.
    """

    name: str
    files: tuple[str, ...]
    runs: tuple[Run, ...]


def wn(**sizes: Any) -> Case:
    return Case("wn", ops.wn, _wn(**{"layers": 2, "channels": 8, "gate": 40, "skip": 8, "cond_channels": 8, **sizes}))


def wn_layer(**sizes: Any) -> Case:
    sizes = {"channels": 8, "gate": 24, "skip": 8, "cond_channels": 8, **sizes}
    return Case("wn_layer", ops.wn_layer, _wn_layer(**sizes))


def first_entry(case: Case) -> Case:
    """The same without the other batch entries."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, options = case.arguments(t, dtype)
        h, cond, mask = (None if args[i] is None else args[i][:1] for i in (0, 5, 9))
        return (h, *args[1:5], cond, *args[6:9], mask), options

    return case._replace(arguments=make)


def far_pivots(case: Case) -> Case:
    """The same with a weight that has one number in each column, far from the diagonal."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x, weight), options = case.arguments(t, dtype)
        size = weight.shape[0]
        return (x, torch.diag(torch.linspace(0.5, 2, size, dtype=dtype)).roll(size // 2 + 2, 0)), options

    return case._replace(arguments=make)


STACKS = wn(layers=3, last_residual=True, mask=True), wn(cond="projected", input_bias=2)
PHASES = wn(gate=72, phases=3)
half = {"dtype": torch.bfloat16}
back = {"backward": True}

GROUPS = (
    Group(
        "vectors",
        ("wn_vectors",),
        (
            Run(wn(channels=33, gate=3, cond="global", cond_channels=33, input_bias=1), 2),
            Run(wn(gate=3, cond="projected global"), 2),
        ),
    ),
    Group(
        "portable",
        ("wn_portable", "wn_schedule"),
        (*(Run(case, 70) for case in STACKS), Run(wn_layer(), 9, **back)),
    ),
    Group(
        "sm80",
        ("wn_sm80", "wn_sm80_tile", "wn_schedule"),
        tuple(Run(case, 70, capability=80, **half) for case in STACKS),
    ),
    Group(
        "sm80 backward",
        ("wn_backward_sm80", "wn_sm80_tile"),
        tuple(Run(wn_layer(), 9, dtype, 80, **back) for dtype in (torch.bfloat16, torch.float32)),
    ),
    Group(
        "sm90",
        ("wn_sm90", "wn_schedule"),
        (
            *(
                Run(case, 70, capability=90, multiprocessors=6, **half)
                for case in (STACKS[0], wn(kernel=9, cond="projected", input_bias=2))
            ),
            Run(first_entry(wn(gate=72)), 130, capability=90, multiprocessors=2, variant="by time", **half),
            Run(PHASES, 60, capability=90, multiprocessors=2, variant="by time", **half),
            Run(wn(gate=72), 40, capability=90, multiprocessors=12, variant="by rows", **half),
        ),
    ),
    Group(
        "small",
        ("gate", "affine_coupling", "actnorm", "invconv1x1", "elimination", "flow_step", "lane_tile"),
        (
            Run(Case("gate", ops.gate, _gate("plain")), 100, **back),
            Run(Case("affine", ops.affine_coupling, _affine("exp", False, mask=True)), 300, **back),
            Run(Case("actnorm", ops.actnorm, _actnorm(False, mask=True)), 300, **back),
            Run(Case("3 channels", ops.invconv1x1, _invconv(False, channels=3, mask=True)), 40, **back),
            Run(Case("half", ops.invconv1x1, _invconv(False, channels=3)), 9, **half, **back),
            Run(
                Case("12 channels", ops.invconv1x1, _invconv(False, channels=12, mask=True)),
                300,
                multiprocessors=1,
                **back,
            ),
            Run(far_pivots(Case("36 channels", ops.invconv1x1, _invconv(False, channels=36, mask=True))), 40, **back),
            Run(
                Case("one by one", ops.flow_step, _flow_step(True, channels=6, hidden=17, early=2, layout="strided")),
                33,
            ),
            Run(Case("vectors", ops.flow_step, _flow_step(channels=4, hidden=520, layout="strided")), 33),
            Run(Case("double", ops.flow_step, _flow_step(channels=4, hidden=17, layout="strided")), 9, torch.float64),
            Run(Case("along steps", ops.flow_step, _flow_step(channels=12, hidden=17)), 33),
        ),
    ),
)


class Mutant(NamedTuple):
    """A change to one call: skip it, or shift one of its operands."""

    site: int
    file: str
    line: int
    column: int
    kind: str
    change: str  # "skip", or the operand and by how much it is shifted
    operand: int = 0
    by: int = 0

    def __str__(self) -> str:
        return f"{self.file}.cuh:{self.line}:{self.column} {self.kind}: {self.change}"


def mutants_of(site: dict[str, Any]) -> Iterator[Mutant]:
    here = site["index"], stem(site), site["line"], site["column"], site["kind"]
    if site["synchronises"]:
        yield Mutant(*here, "skip")
    for i, name in enumerate(site["operands"]):
        for step in STEPS[name]:
            step = step or site["bytes"] or 8  # without an access it is the address of an mbarrier
            if site["kind"] == "tma_load" and name == "destination":
                step = 1024  # eight rows
            yield Mutant(*here, f"{name} {step:+}", i, step)


def stem(site: dict[str, Any]) -> str:
    return str(site["file"]).rsplit("/", 1)[-1].removesuffix(".cuh")


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(nan=1e30), y.nan_to_num(nan=1e30)) for x, y in zip(a, b, strict=True))


class Laboratory:
    """One run, its results without faults, and its sites."""

    def __init__(self, emulator: Any, run: Run, schedules: tuple[tuple[str, int, str], ...] = SCHEDULES) -> None:
        self.emulator, self.run = emulator, run
        emulator.device(capability=run.capability, multiprocessors=run.multiprocessors)
        emulator.forget_sites()
        torch.manual_seed(1)
        self.args, self.options = run.case.arguments(run.length, run.dtype)
        self.clean: list[Tensor] = []
        for schedule in schedules:
            got = self.under(schedule)
            self.clean = self.clean or got
            assert same(got, self.clean), f"{run.case.name}: other bits under schedule {schedule}"
        self.sites = emulator.sites()

    def under(self, schedule: tuple[str, int, str]) -> list[Tensor]:
        self.emulator.schedule(*schedule[:2], delivery=schedule[2])
        got = contract.run(self.run.case, self.args, self.options, "cuda")
        if self.run.backward:
            got += contract.gradients(self.run.case, self.args, self.options, "cuda")
        return got

    def mutants(self, files: tuple[str, ...]) -> Iterator[Mutant]:
        for site in self.sites:
            if stem(site) in files:
                yield from mutants_of(site)

    def noticed(self, mutant: Mutant) -> bool:
        if mutant.change == "skip":
            self.emulator.skip(mutant.site)
        else:
            self.emulator.shift(mutant.site, mutant.by, mutant.operand)
        try:
            return any(self.differs(schedule) for schedule in SCHEDULES)
        finally:
            self.emulator.heal()

    def differs(self, schedule: tuple[str, int, str]) -> bool:
        try:
            return not same(self.under(schedule), self.clean)
        except RuntimeError as error:
            if "_kernel" not in str(error):  # it is of something else
                raise
            return True


class Equivalent(NamedTuple):
    """A mutant that is no fault."""

    where: str  # group and variant
    file: str
    call: str  # part of its line
    change: str
    reason: str

    def describes(self, where: str, mutant: Mutant) -> bool:
        line = (KERNELS / f"{mutant.file}.cuh").read_text().splitlines()[mutant.line - 1]
        return (self.where, self.file, self.change) == (where, mutant.file, mutant.change) and self.call in line


FOLLOWED = "a barrier of the block follows; without this one ptxas spills 60 bytes in the largest tile of sm80"
ALONE = "these runs have one tile to wait for, and the first lane, which acts on it, waits for it itself"
EQUIVALENT = (
    Equivalent("portable", "wn_schedule", "arch::sync_warp()", "skip", FOLLOWED),
    Equivalent("sm80", "wn_schedule", "arch::sync_warp()", "skip", FOLLOWED),
    Equivalent("sm90 by rows", "wn_schedule", "arch::sync_warp()", "skip", ALONE),
    Equivalent(
        "sm90", "wn_sm90", "arch::shuffle(", "lane -1", "all lanes have the same value; the compiler shall know it"
    ),
)


@pytest.fixture(autouse=True)
def surroundings(emulator: Any) -> Iterator[None]:
    """New memory is full of NaN; float32 may be multiplied as tf32."""
    precision = torch.backends.cuda.matmul.fp32_precision
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.use_deterministic_algorithms(False)
    emulator.forget_sites()
    emulator.schedule("in order", 0)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_every_mutant_is_noticed(group: Group, emulator: Any) -> None:
    noticed: dict[tuple[str, str], bool] = {}
    mutants: dict[tuple[str, str], Mutant] = {}
    for run in group.runs:
        laboratory = Laboratory(emulator, run)
        for mutant in laboratory.mutants(group.files):
            where = f"{group.name} {run.variant}" if run.variant and mutant.change == "skip" else group.name
            key = where, str(mutant)
            mutants[key] = mutant
            if not noticed.get(key):
                noticed[key] = laboratory.noticed(mutant)
    survivors = [key for key in mutants if not noticed[key]]
    unused = [entry for entry in EQUIVALENT if entry.where.split(" by ")[0] == group.name]
    for key in list(survivors):
        for entry in unused:
            if entry.describes(key[0], mutants[key]):
                survivors.remove(key)
                unused.remove(entry)
                break
    assert not survivors, "not noticed:\n" + "\n".join(" ".join(key) for key in survivors)
    assert not unused, f"these are noticed, and need no entry: {unused}"


def test_every_call_is_reached(emulator: Any) -> None:
    """By line: a call in the kernels of a wrapper whose model knows where it was called from."""
    models = library.ROOT / "csrc" / "emulator" / "arch"
    watched = set(re.findall(r"(\w+)\([^;{]*Location at", "".join(path.read_text() for path in models.glob("*.cuh"))))
    assert {"sync_threads", "copy_wait", "mbarrier_wait", "tma_load_multicast", "load_global"} <= watched
    calls: Counter[tuple[str, int]] = Counter()
    for path in KERNELS.glob("*.cuh"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            names = re.findall(r"arch::(\w+)(?:<[^()]*>)?\(", line.split("//")[0])
            calls[path.stem, number] += sum(name in watched for name in names)
    reached = set()
    for run in (run for group in GROUPS for run in group.runs):
        laboratory = Laboratory(emulator, run, SCHEDULES[:1])
        reached |= {(stem(site), site["line"], site["column"]) for site in laboratory.sites}
    missing = calls - Counter((file, line) for file, line, _ in reached)
    assert not missing, f"calls by file and line: {dict(missing)}"
