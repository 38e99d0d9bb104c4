"""List what nvcc made of the kernels in csrc/cuda, from a built library: no GPU is used.

    python -m benchmarks.compiled --arch sm_90a

For each architecture and kernel: registers, stack and spills, shared memory that is fixed, and how often the machine
code multiplies matrices, copies asynchronously and waits. The exit status is 1 if a kernel spills, or if one that is
written for an instruction set does without it: a kernel with `sm80` in its name without HMMA, one with `sm90` without
HGMMA and UTMALDG.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import machine_code

LIBRARY = Path(__file__).parent.parent / "fastflow" / "_cuda.so"

# Columns of the table, and the instructions that each counts.
LOCAL = ("LDL", "STL")  # spills, and arrays that are not in registers
PRODUCTS = ("HMMA", "HGMMA", "FFMA", "DFMA")
COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")  # cp.async; TMA by tiles; TMA in one piece
WAITS = ("BAR", "SYNCS", "UCGABAR_WAIT")  # barriers of a block; mbarriers; of a cluster
COUNTED = (*LOCAL, *PRODUCTS, *COPIES, *WAITS, "WARPGROUP")


@dataclass
class Row:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    stack: int  # bytes
    shared: int  # bytes, fixed ones
    instructions: dict[str, int] = field(default_factory=dict)  # of COUNTED, those that occur

    @property
    def spills(self) -> int:
        return sum(self.instructions.get(name, 0) for name in LOCAL)

    def violation(self) -> str:
        """Say what is wrong, or nothing."""
        if self.spills or self.stack:
            return f"spills: {self.spills} local loads and stores, {self.stack} bytes of stack"
        name = self.kernel.split("<")[0]
        wanted: tuple[str, ...] = ()
        if "sm90" in name and self.arch == "sm_90a":
            wanted = ("HGMMA", "UTMALDG")
        elif "sm80" in name and capability(self.arch) >= 80:
            wanted = ("HMMA",)
        missing = [instruction for instruction in wanted if instruction not in self.instructions]
        return f"no {' and no '.join(missing)}" if missing else ""


def capability(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def demangled(names: Sequence[str]) -> list[str]:
    """Return C++ names as short as they tell kernels apart; unchanged where there is no c++filt."""
    if not shutil.which("c++filt"):
        return list(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shortened(name) for name in done.stdout.splitlines()]


def shortened(name: str) -> str:
    """Leave out the result, the parameters and the namespaces of a demangled function."""
    for long, short in (
        ("(anonymous namespace)::", ""),
        ("fastflow::", ""),
        ("arch::", ""),
        ("__nv_bfloat16", "bf16"),
        ("__half", "fp16"),
    ):
        name = name.replace(long, short)
    name = re.sub(r"\((?:unsigned )?(?:int|long|bool|short|char)\)(?=-?\d)", "", name)  # (int)64, a template's argument
    depth, start, end = 0, 0, len(name)
    for i, letter in enumerate(name):
        if letter in "<(":
            if letter == "(" and depth == 0:
                end = i
                break
            depth += 1
        elif letter in ">)":
            depth -= 1
        elif letter == " " and depth == 0:
            start = i + 1
    return name[start:end]


def inspect(library: Path, archs: Sequence[str] = ()) -> list[Row]:
    """Read a library's kernels for these architectures, or for all of them."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        found = [item for item in machine_code.cubins(library, Path(folder)) if not archs or item[0] in archs]
        usages = pool.map(machine_code.usage, [path for _, path in found])
        codes = pool.map(machine_code.instructions, [path for _, path in found])
        rows = [
            Row(name, arch, *needs, {i: code[name][i] for i in COUNTED if code[name][i]})
            for (arch, _), used, code in zip(found, usages, codes, strict=True)
            for name, needs in used.items()
        ]
    # A header's kernel that two files use is in the library twice.
    rows = [row for i, row in enumerate(rows) if row not in rows[:i]]
    for row, name in zip(rows, demangled([row.kernel for row in rows]), strict=True):
        row.kernel = name
    return sorted(rows, key=lambda row: (row.kernel, capability(row.arch), row.arch))


def table(rows: Sequence[Row]) -> str:
    lines = ["| kernel | arch | registers | stack | spills | shared | products | copies | waits |", "|---" * 9 + "|"]

    def counts(row: Row, names: Sequence[str]) -> str:
        return " ".join(f"{name} {row.instructions[name]}" for name in names if name in row.instructions) or "-"

    for r in rows:
        lines.append(
            f"| {r.kernel} | {r.arch} | {r.registers} | {r.stack} | {r.spills} | {r.shared} | {counts(r, PRODUCTS)} "
            f"| {counts(r, COPIES)} | {counts(r, WAITS)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--library", type=Path, default=LIBRARY, help="default: fastflow/_cuda.so")
    parser.add_argument("--arch", nargs="+", default=[], help="sm_80, sm_90a, ...; default: all in the library")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args(arguments)
    if not options.library.exists():
        parser.error(f"there is no {options.library}; `make build` makes it where there is an nvcc")
    rows = inspect(options.library, options.arch)
    if not rows:
        parser.error(f"{options.library} has no code for {' '.join(options.arch) or 'any architecture'}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if row.violation()]
    print(f"\n{len(rows)} kernels, {len(bad)} violations")
    for row in bad:
        print(f"{row.kernel} {row.arch}: {row.violation()}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
