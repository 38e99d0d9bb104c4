"""Whether Triton's kernels can run here, and why not."""

from __future__ import annotations

import functools
import importlib
import os
import re

import torch

# Older compilers than these fail on our kernels. PyTorch 2.10, the oldest that we run on, comes with 3.6.
NEEDED = (3, 6) if torch.version.hip is None else (3, 9)


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, as its own variable TRITON_INTERPRET asks."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _unusable() -> str | None:
    """Return why the package cannot be used at all, or None."""
    try:
        triton = importlib.import_module("triton")
    except ModuleNotFoundError:
        return "the package `triton` is not installed"
    except Exception as error:  # whatever its own start raises, the other backends go on
        return f"importing triton failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    version: str = triton.__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < NEEDED:
        return f"it needs triton {'.'.join(map(str, NEEDED))} or newer; found {version}"
    return None


def unavailable() -> str | None:
    """Return why the kernels cannot run on this machine, or None. Imports Triton only where they could."""
    if not interpreted() and not torch.cuda.is_available():
        return "no GPU is available (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for tests)"
    return _unusable()
