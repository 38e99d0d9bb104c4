"""Reads compiled GPU code with the tools that ship in the triton package: it takes neither a GPU nor a CUDA toolkit."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What a kernel needs."""

    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread
    shared: int  # bytes, without what a launch asks for on top; from sm_90 on 1024 of them are the system's


def tool(name: str) -> str:
    """Return the path of one of NVIDIA's programs."""
    import triton

    return str(Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / name)


def _output(*command: str | Path, folder: Path | None = None) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def cubins(library: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Take a library's compiled GPU code out into `folder`: architecture, such as sm_90a, and file."""
    _output(tool("cuobjdump"), "-xelf", "all", library.resolve(), folder=folder)
    for path in sorted(folder.glob("*.cubin")):
        found = re.search(r"\.(sm_\d+[a-z]?)\.cubin$", path.name)
        assert found is not None, f"cuobjdump named a file {path.name}"
        yield found.group(1), path


def usage(cubin: Path) -> dict[str, Usage]:
    """Return what each kernel needs, by its name in the file."""
    printed = _output(tool("cuobjdump"), "-res-usage", cubin)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", printed)
    return {name: Usage(*map(int, numbers)) for name, *numbers in found}


_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+)")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def instructions(cubin: Path) -> dict[str, Counter[str]]:
    """Return how often each instruction, such as HMMA, is in each kernel's code; without what follows its first dot."""
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in _output(tool("nvdisasm"), "-c", cubin).splitlines():
        if section := _SECTION.match(line):
            current = counts.setdefault(section.group(1), Counter())
        elif instruction := _INSTRUCTION.match(line):
            current[instruction.group(1).split(".")[0]] += 1
    return counts
