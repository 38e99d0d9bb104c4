"""Loading the compiled libraries, and remembering why one is missing.

Nothing here raises: a package without compiled libraries is a complete package, only slower.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_CPU_NEEDS = "Linux, a C++ compiler, ninja and PyTorch's headers at install time"
_NOT_BUILT = {
    "cpu": f"that takes {_CPU_NEEDS}, and FASTFLOW_BUILD_CPU not 0",
    "cuda": f"that takes nvcc, {_CPU_NEEDS}, and FASTFLOW_BUILD_CUDA not 0",
}

_reasons: dict[str, str | None] = {}  # library: None when loaded, else why not; empty until load() has run


def load() -> None:
    """Load fastflow/_cpu.so and fastflow/_cuda.so where they exist. Later calls do nothing."""
    for name, not_built in _NOT_BUILT.items():
        if name not in _reasons:
            _reasons[name] = _load(Path(__file__).with_name(f"_{name}.so"), not_built)


def status() -> dict[str, str | None]:
    """Return for "cpu" and "cuda" None where the library is loaded, else the plain reason why it is not."""
    load()
    return dict(_reasons)


def _load(path: Path, not_built: str) -> str | None:
    if not path.exists():
        return f"fastflow/{path.name} is not built ({not_built})"
    if _is_cut_off(path):  # the loader would map what is not there, and the process would end at the first touch
        return f"fastflow/{path.name} cannot be loaded: the file is cut off"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:  # missing symbols, another processor; a PyTorch without this ABI
        reason = str(error.__cause__ or error).splitlines()[0]  # torch wraps the loader's own words
        if path.name == "_cuda.so" and torch.version.cuda is None:
            reason = f"this PyTorch is built without CUDA ({reason})"
        return f"fastflow/{path.name} cannot be loaded: {reason}"
    return None


def _is_cut_off(path: Path) -> bool:
    """Whether an ELF file ends before its section headers, which are its last part, do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if head[:5] != b"\x7fELF\x02":  # empty or something else: the loader says so itself
        return False
    start = int.from_bytes(head[40:48], sys.byteorder)
    entry_size, entries = int.from_bytes(head[58:60], sys.byteorder), int.from_bytes(head[60:62], sys.byteorder)
    return len(head) < 64 or start + entry_size * entries > size
