"""Fast kernels for flow-based audio models, with the same outputs."""

from fastflow import models, nn, ops
from fastflow._version import __version__
from fastflow.checkpoints import load
from fastflow.ops import BackendError, use_backend

__all__ = ["BackendError", "__version__", "load", "models", "nn", "ops", "use_backend"]
