"""Compile every Triton kernel ahead of time, at published sizes, and list what it needs: no GPU is used.

    python -m benchmarks.resources --arch sm_80 sm_90 sm_100

Each operation's Triton implementation runs on tensors without values, once per case, dtype and architecture, with the
configurations that the tables hold for that architecture. What it would launch is compiled instead. The table says for
each distinct kernel: registers, spills, shared memory against the device's limit, the matrix instruction and whether
copies are asynchronous. The exit status is 1 if one spills, needs too much or does not compile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine_code
from fastflow import _triton
from fastflow.bench.cases import CASES, Case
from fastflow.ops import registry, tuning

ARCHS = ("sm_80", "sm_90", "sm_100")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Unit(NamedTuple):
    """One call of an operation: its kernels are compiled for one architecture."""

    case: int
    dtype: torch.dtype
    arch: str


class Job(NamedTuple):
    """One distinct kernel: what to call, and which of the call's launches it is."""

    unit: Unit
    launch: int


@dataclass
class Row:
    """What one kernel needs."""

    kernel: str
    ops: list[str]
    cases: list[str]
    dtype: str
    arch: str
    config: dict[str, int]
    registers: int = 0
    stack: int = 0  # bytes; what spills lie there
    spills: int = 0  # local loads and stores in the machine code
    shared: int = 0
    limit: int = 0
    matrix: list[str] = field(default_factory=list)
    async_copy: bool = False
    serialized: bool = False  # ptxas had to wait after each wgmma
    seconds: float = 0.0
    error: str = ""

    def violation(self) -> str:
        """Say what is wrong, or nothing."""
        if self.error:
            return self.error
        if self.spills or self.stack:
            return f"spills: {self.spills} local loads and stores, {self.stack} bytes of stack"
        if self.shared > self.limit:
            return f"{self.shared} bytes of shared memory; the device has {self.limit}"
        return "the matrix instructions run one at a time" if self.serialized else ""


# Compiling without a device


class _Driver:
    """Stands for a device that is not there."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        number = tuning.capability(arch)
        self.target = GPUTarget("cuda", number, 32) if number is not None else GPUTarget("hip", arch, 64)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def target(arch: str) -> tuning.Target:
    if tuning.capability(arch) is None:
        return tuning.Target(arch, 65536)
    return tuning.Target(arch, tuning.SHARED_MEMORY[arch])


class Launch(NamedTuple):
    """What `tuning.launch` was asked to run."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    config: dict[str, int]

    def compile(self) -> Any:
        """Compile as a launch with these arguments would; None where the hook below says not to."""
        return self.kernel.warmup(*self.args, grid=(1,), **self.options, **self.config, **tuning.COMPILER_OPTIONS)


@contextlib.contextmanager
def _device(arch: str) -> Iterator[list[Launch]]:
    """Collect, inside the `with` block, what operations would launch on this architecture."""
    from triton.runtime import driver

    launches: list[Launch] = []

    def record(kernel: Any, grid: Any, *args: Any, sizes: dict[str, int], **options: Any) -> None:
        name = kernel.__name__.removesuffix("_kernel")
        config = tuning.configuration(name, args[0].device, args[0].dtype, sizes, options.get("PRECISION"))
        shape = grid(config)
        assert all(isinstance(n, int) and n > 0 for n in shape), f"{name}: a grid of {shape}"
        args = tuple(a.make(config) if isinstance(a, tuning.Workspace) else a for a in args)
        kernel.device_caches.clear()
        launches.append(Launch(kernel, args, options, config))

    driver.set_active(_Driver(arch))
    original, tuning.launch = tuning.launch, record
    try:
        with tuning.pretend(target(arch)):
            yield launches
    finally:
        tuning.launch = original


def launches_of(case: Case, dtype: torch.dtype, arch: str) -> list[Launch]:
    registry._load_triton()
    with _device(arch) as launches:
        registry._implementations["triton"][case.op](*case.arguments(dtype, "meta"))
    return launches


@contextlib.contextmanager
def _keys_only(keys: list[str]) -> Iterator[None]:
    """Note what would be compiled, without compiling it."""
    from triton import knobs

    def note(**call: Any) -> bool:
        keys.append(f"{call['fn'].module}.{call['fn'].name} {call['repr']} {call['key']}")
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


def plan(units: Sequence[Unit]) -> tuple[dict[Job, list[Case]], list[Row]]:
    """Return the distinct kernels of these calls, with all cases that use each, and the failed calls."""
    jobs: dict[tuple[str, str], Job] = {}
    used: dict[Job, list[Case]] = {}
    failed = []
    for unit in units:
        case = CASES[unit.case]
        try:
            launches = launches_of(case, unit.dtype, unit.arch)
            if not launches:
                raise RuntimeError("nothing was launched")
        except Exception as error:  # reported as a row
            failed.append(_failed(unit, "?", {}, error))
            continue
        for i, launch in enumerate(launches):
            keys: list[str] = []
            with _keys_only(keys):
                launch.compile()
            job = jobs.setdefault((unit.arch, keys[0]), Job(unit, i))
            users = used.setdefault(job, [])
            if case not in users:
                users.append(case)
    return used, failed


def _failed(unit: Unit, kernel: str, config: dict[str, int], error: Exception) -> Row:
    case = CASES[unit.case]
    message = f"{type(error).__name__}: {error}".splitlines()
    text = next((line for line in message if "fatal" in line or "error" in line.lower()), message[0])
    return Row(kernel, [case.op], [case.name], _SHORT[unit.dtype], unit.arch, config, error=text.strip()[:300])


# Reading what was compiled

_PTX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|cp\.async)\b")
_SASS = re.compile(r"HGMMA|UTC[HQ]?MMA|HMMA")


def inspect(compiled: Any, row: Row, *, sass: bool = False) -> None:
    """Fill in what the compiled kernel needs."""
    row.shared = compiled.metadata.shared
    row.limit = target(row.arch).shared_memory
    if "amdgcn" in compiled.asm:
        return _inspect_amd(compiled.asm["amdgcn"], row)
    ptx = Counter(_PTX.findall(compiled.asm["ptx"]))
    row.async_copy = ptx.pop("cp.async", 0) > 0
    row.matrix = sorted(ptx)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        ((name, needs),) = machine_code.usage(cubin).items()
        row.registers, row.stack = needs.registers, needs.stack
        if sass or row.stack:
            counts = machine_code.instructions(cubin)[name]
            row.spills = counts["LDL"] + counts["STL"]
            row.matrix += sorted(filter(_SASS.fullmatch, counts))


def _inspect_amd(assembly: str, row: Row) -> None:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    row.registers = number("vgpr_count")
    row.stack = number("private_segment_fixed_size")
    row.spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    row.matrix = ["v_mfma"] if "v_mfma" in assembly else []


def compile_job(job: Job, sass: bool) -> Row:
    """Compile one kernel and return what it needs."""
    from triton import knobs

    case = CASES[job.unit.case]
    launch = launches_of(case, job.unit.dtype, job.unit.arch)[job.launch]
    name = launch.kernel.__name__.removesuffix("_kernel")
    row = Row(name, [case.op], [case.name], _SHORT[job.unit.dtype], job.unit.arch, launch.config)
    # ptxas's report comes only where it runs, hence no cached results; Triton prints it, and failures at length
    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.disable_line_info = True  # a tenth of the time, the same code
    start = time.perf_counter()
    said: list[str] = []
    try:
        with _device(job.unit.arch), _output(said):
            compiled = launch.compile()
    except Exception as error:  # reported as a row
        return _failed(job.unit, name, launch.config, error)
    row.seconds = time.perf_counter() - start
    row.serialized = "wgmma" in said[0] and "serialized" in said[0]
    # LLVM's code generator goes on after an error of its own and leaves wrong code behind
    row.error = next((line.split(" in function ")[0] for line in said[0].splitlines() if line.startswith("error:")), "")
    inspect(compiled, row, sass=sass)
    return row


@contextlib.contextmanager
def _output(said: list[str]) -> Iterator[None]:
    """Collect what the compilers print, by Python or past it."""
    printed = io.StringIO()
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(printed.getvalue() + file.read().decode(errors="replace"))


# The table


def enough(case: Case, dtype: torch.dtype, arch: str) -> bool:
    """Whether `--quick` compiles this.

    The main cases: in bfloat16 for every architecture, in float32 for the oldest one. For the newest, where a gated
    stack takes three times as long to compile as for the one before, WaveGlow's alone. The rest takes an hour: float16,
    whose kernels are bfloat16's but for the instructions' names, and other sizes.
    """
    if not case.main or (arch == "sm_100" and case.op.startswith("wn") and not case.name.startswith("WaveGlow")):
        return False
    return dtype == torch.bfloat16 or (dtype == torch.float32 and arch == "sm_80")


def check(units: Sequence[Unit], sass: bool, jobs: int) -> list[Row]:
    """Compile what these calls launch."""
    used, rows = plan(units)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for job, row in zip(used, pool.map(compile_job, used, [sass] * len(used)), strict=True):
            row.cases = list(dict.fromkeys(case.name for case in used[job]))
            row.ops = list(dict.fromkeys(case.op for case in used[job]))
            rows.append(row)
    return sorted(rows, key=lambda r: (r.kernel, r.arch, r.dtype, r.cases))


def table(rows: Sequence[Row]) -> str:
    head = (
        "| kernel | dtype | arch | config | registers | spills | stack | shared / limit | matrix | async copy | s "
        "| first case | cases |"
    )
    lines = [head, "|---" * 13 + "|"]
    for r in rows:
        config = " ".join(f"{name.removeprefix('BLOCK_').replace('num_', '')}={v}" for name, v in r.config.items())
        copies = "yes" if r.async_copy else "-"
        lines.append(
            f"| {r.kernel} | {r.dtype} | {r.arch} | {config} | {r.registers} | {r.spills} | {r.stack} "
            f"| {r.shared} / {r.limit} | {' '.join(r.matrix) or '-'} | {copies} | {r.seconds:.1f} "
            f"| {r.cases[0]} | {len(r.cases)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), help="sm_80, ...; gfx942 for AMD's")
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--op", nargs="+", help="only these operations, such as wn_layer wn_layer_backward")
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument("--main", action="store_true", help="only the main cases")
    parser.add_argument("--quick", action="store_true", help="a choice that takes two minutes, not an hour")
    parser.add_argument("--sass", action="store_true", help="disassemble, for the machine's own matrix instructions")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args(arguments)
    if _triton.interpreted():
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    for arch in options.arch:
        if arch not in tuning.SHARED_MEMORY and not arch.startswith("gfx"):
            known = ", ".join(tuning.SHARED_MEMORY)
            parser.error(f"--arch must be one of {known}, or AMD's, such as gfx942; got {arch!r}")
    registry._load_triton()
    implemented = registry._implementations["triton"]
    cases = [
        i
        for i, case in enumerate(CASES)
        if case.op in implemented
        and (not options.op or case.op in options.op)
        and (not options.case or options.case in case.name)
        and (case.main or not options.main)
    ]
    units = [
        Unit(i, DTYPES[dtype], arch)
        for arch in options.arch
        for i in cases
        for dtype in options.dtype
        if not options.quick or enough(CASES[i], DTYPES[dtype], arch)
    ]
    rows = check(units, options.sass, options.jobs)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if row.violation()]
    print(f"\n{len(rows)} kernels, {sum(row.seconds for row in rows):.0f} s of compiling, {len(bad)} violations")
    for row in bad:
        print(f"{row.kernel} {row.dtype} {row.arch} {row.config} ({row.cases[0]}): {row.violation()}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
