"""One training run in one or several processes: which is this, and what all of them must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist


class World(NamedTuple):
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> World:
        """That of torch.distributed's default group, or one process where there is none."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    @property
    def writes(self) -> bool:
        """Whether this is the process that logs and writes files."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes, and the first process's weights in all."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor, in float64."""
        wide = value.detach().double()
        if self.size > 1:
            dist.all_reduce(wide)
            wide /= self.size
        return wide

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process is to stop, and the first one's clock."""
        if self.size == 1:
            return stop, seconds
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        said = torch.tensor([float(stop), seconds if self.rank == 0 else 0.0], dtype=torch.float64, device=device)
        dist.all_reduce(said)
        any_stop, clock = said.tolist()
        return any_stop > 0, clock


@contextmanager
def launched(device: str) -> Iterator[str]:
    """Join the processes that torchrun has started, if it has; give the device that this one is to use.

    GPUs talk by NCCL, each process with the one of its local rank, CPUs by gloo.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield device
        return
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
