"""One training run in one or several processes: which is this, and what all of them must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .objective import Objective
from .settings import TrainingError

PARALLEL = ("ddp", "fsdp")
"""Ways of several processes: each has the whole model, or a share of it."""


class World(NamedTuple):
    """This process's number, how many there are, and whether each has but a share of the model (FSDP)."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @staticmethod
    def current(parallel: str = "ddp") -> World:
        """That of torch.distributed's default group, or one process where there is none."""
        if dist.is_available() and dist.is_initialized():
            size = dist.get_world_size()
            return World(dist.get_rank(), size, parallel == "fsdp" and size > 1)
        return World()

    @property
    def writes(self) -> bool:
        """Whether this is the process that logs and writes files."""
        return self.rank == 0

    def parallel(self, objective: Objective) -> nn.Module:
        """What to call for a loss whose gradients are averaged over the processes; sharded in place, or a wrapper."""
        if self.sharded:
            from .shards import shard

            shard(objective, objective.networks())
        if self.size == 1 or self.sharded:
            return objective
        # Every step is the same; a FloWaveNet has weights that take part in none, which DDP refuses otherwise.
        return nn.parallel.DistributedDataParallel(objective, static_graph=True)

    def whole(self, tree: Any, *, everywhere: bool = False) -> Any:
        """Dictionaries and lists of tensors with what is sharded gathered on the CPU, by all processes together.

        It is for the process that writes; others have None in the place of what was gathered, or with `everywhere` the
        same.
        """
        if not self.sharded:
            return tree
        from .shards import gathered

        return gathered(tree, keep=self.writes or everywhere)

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        """A whole tensor as `like` is: its own share where that is sharded."""
        if not self.sharded:
            return whole
        from .shards import share

        return share(whole, like)

    def equal_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers, which are what is saved."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor, in float64."""
        wide = value.detach().double()
        if self.size > 1:
            dist.all_reduce(wide)
            wide /= self.size
        return wide

    def write(self, action: Callable[[], object]) -> None:
        """Run `action` in the process that writes; where that fails, all of them stop.

        Raises:
            TrainingError: in the others. In that process, what `action` raised.
        """
        error = None
        if self.writes:
            try:
                action()
            except Exception as caught:  # of any type: the others wait
                error = caught
        failed, _ = self.agree(error is not None, 0.0)
        if error is not None:
            raise error
        if failed:
            raise TrainingError("the first process could not write its files, and says why")

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
