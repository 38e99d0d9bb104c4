"""Settings that must be there before Triton is imported, one thread for each of several processes, and no tf32."""

import os
from collections.abc import Iterator

import pytest
import torch

# Without a GPU the Triton kernels are interpreted on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# `pytest -n 2` has a process per core; their children too are to have one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Convolutions use tf32 unless told otherwise."""
    modules = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [module.fp32_precision for module in modules]
    for module in modules:
        module.fp32_precision = "ieee"
    yield
    for module, precision in zip(modules, before, strict=True):
        module.fp32_precision = precision
