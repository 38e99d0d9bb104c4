"""Fast kernels for flow-based audio models, with the same outputs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastflow._version import __version__

if TYPE_CHECKING:
    from fastflow import models, nn, ops, stacks
    from fastflow.checkpoints import load
    from fastflow.ops import BackendError, use_backend
    from fastflow.stacks import AccelerateError, accelerate

__all__ = [
    "AccelerateError",
    "BackendError",
    "__version__",
    "accelerate",
    "load",
    "models",
    "nn",
    "ops",
    "stacks",
    "use_backend",
]

# Imported on first use: `fastflow --help` needs no PyTorch, and `fastflow info` works when registration fails.
_FOUND_IN = {
    "AccelerateError": "fastflow.stacks",
    "BackendError": "fastflow.ops",
    "accelerate": "fastflow.stacks",
    "load": "fastflow.checkpoints",
    "use_backend": "fastflow.ops",
}


def __getattr__(name: str) -> Any:
    if name in _FOUND_IN:
        return getattr(importlib.import_module(_FOUND_IN[name]), name)
    if name in __all__:
        return importlib.import_module(f"fastflow.{name}")
    raise AttributeError(f"module 'fastflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
