"""Settings that must be there before Triton is imported, and one thread for each of several processes."""

import os

import torch

# Without a GPU the Triton kernels are interpreted on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# `pytest -n 2` has a process per core; their children too are to have one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
