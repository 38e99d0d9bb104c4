"""Fast kernels for flow-based audio models, with the same outputs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastflow._version import __version__

if TYPE_CHECKING:
    from fastflow import models, nn, ops
    from fastflow.checkpoints import load
    from fastflow.ops import BackendError, use_backend

__all__ = ["BackendError", "__version__", "load", "models", "nn", "ops", "use_backend"]

# Imported on first use: `fastflow --help` needs no PyTorch, and `fastflow info` works when registration fails.
_FOUND_IN = {"BackendError": "fastflow.ops", "load": "fastflow.checkpoints", "use_backend": "fastflow.ops"}


def __getattr__(name: str) -> Any:
    if name in _FOUND_IN:
        return getattr(importlib.import_module(_FOUND_IN[name]), name)
    if name in __all__:
        return importlib.import_module(f"fastflow.{name}")
    raise AttributeError(f"module 'fastflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
