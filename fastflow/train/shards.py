"""Models in shares, one per process, by FSDP2 (torch.distributed.fsdp.fully_shard); imported only where it is used."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, networks: list[tuple[nn.Module, list[nn.Parameter]]]) -> None:
    """Turn the parameters of `module` into DTensors, in place: shares of the first process's. All have its buffers.

    Each network's parameters are gathered for its own forward and backward, those of the rest for the module's.

    Args:
        module: what is called in a training step.
        networks: modules in it, each with those of its parameters that nothing but its own forward reads.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # a 1x1 weight starts as the transpose that QR gives
        dist.broadcast(parameter.data, 0)
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    # The module first: what a network has besides its own parameters, such as the last convolution, which a kernel of
    # the coupling takes, is then the module's, for fully_shard leaves alone what others have taken.
    own = {parameter for _, parameters in networks for parameter in parameters}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    for network, parameters in networks:
        others = set(network.parameters()).difference(parameters)
        fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=others)


def gathered(tree: Any, keep: bool) -> Any:
    """Dictionaries, lists and tuples of tensors with each share made whole, on the CPU, or None without `keep`.

    All processes take part, one tensor after the other; who does not keep them has the memory of one.
    """
    if isinstance(tree, DTensor):
        whole = tree.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {key: gathered(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value, keep) for value in tree)
    return tree


def share(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all of them have, split as `like` is; as it is where shapes differ."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
