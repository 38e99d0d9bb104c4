"""Settings that must be there before Triton is imported."""

import os

import torch

# Without a GPU the Triton kernels are interpreted on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
