"""Lists of residual blocks that a model calls one after the other, as one call of the gated stack."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.stacks import convs
from fastflow.stacks.gated import GatedBlock


class LayerList(GatedBlock):
    """A list of residual blocks in a model that says `for f in layers: x, skip = f(x, ...)` and adds up the skips.

    The replaced list iterates over one callable instead: it takes what a block takes, runs all of them, and returns
    None, for the last residual that nobody reads, and the sum of all skips. Everything else about the list stays: its
    length, by which models scale the sum, its items, and their names.

    So a loop for another purpose, as `for f in layers: f.requires_grad_(False)`, does not see the blocks, and fails by
    name; `layers.children()`, `layers[i]` and `modules()` are the blocks as before.

    In training with dropout, or with hooks on a block, the list iterates over its blocks, as it was. Where a call is
    not worth it, the callable runs them one by one.

    A subclass says in `_knows_layer`, `_layer_convolutions` and `_layer_objection` what a block is, and `all_layers`
    has its arguments.
    """

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        layers = list(nn.ModuleList.__iter__(module)) if isinstance(module, nn.ModuleList) else []
        return bool(layers) and len({type(layer) for layer in layers}) == 1 and all(map(cls._knows_layer, layers))

    @classmethod
    def _knows_layer(cls, layer: nn.Module) -> bool:
        """Whether `layer` is a block of this kind."""
        raise NotImplementedError

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        """Whether a block's forward has the arguments of `all_layers`."""
        ours, theirs = (inspect.signature(f).parameters for f in (cls.all_layers, type(layer).forward))
        return list(ours) == list(theirs)

    @classmethod
    def _layer_convolutions(cls, layer: Any) -> dict[str, Any]:
        """Return a block's convolutions by name, of which the first may be causal."""
        raise NotImplementedError

    @classmethod
    def _is_causal(cls, layer: Any) -> bool:
        """Whether a block pads on the left only."""
        return False

    @classmethod
    def objection(cls, module: Any) -> str | None:
        layers = list(module)
        sizes = set()
        for i, layer in enumerate(layers):
            found = cls._layer_convolutions(layer)
            for name, conv in found.items():
                reason = convs.objection(conv, f"{i}.{name}", causal=cls._is_causal(layer))
                if reason is not None:
                    return reason
            if _hooked(layer):
                return f"`{i}` has hooks, which would not run"
            sizes.add(
                (cls._is_causal(layer), *[(n, c.in_channels, c.out_channels, c.bias is None) for n, c in found.items()])
            )
        return None if len(sizes) == 1 else "its blocks differ in more than their dilations"

    @classmethod
    def results(cls, module: Any, example: dict[str, Any]) -> Any:
        return sum_of_skips(module, example)

    def all_layers(self, *arguments: Any) -> tuple[None, Tensor]:
        """Run all blocks: what iteration gives."""
        raise NotImplementedError

    def _one_by_one(self, **arguments: Any) -> tuple[None, Tensor]:
        """Return the same as `all_layers` by way of the original's blocks."""
        return None, sum_of_skips(self._layers(), arguments)

    def _layers(self) -> list[Any]:
        return list(self._modules.values())

    def _dropout(self, layer: Any) -> float:
        """Return how much a block drops in training."""
        return 0.0

    def __iter__(self) -> Iterator[Any]:
        layers = self._layers()
        if any(_hooked(layer) or (layer.training and self._dropout(layer) > 0) for layer in layers):
            return iter(layers)
        return iter([_AllLayers(self.all_layers)])

    def __getitem__(self, index: Any) -> Any:
        return nn.ModuleList(self._layers()[index]) if isinstance(index, slice) else super().__getitem__(index)  # type: ignore[misc]

    def _dilations(self) -> list[int]:
        return [next(iter(self._layer_convolutions(layer).values())).dilation[0] for layer in self._layers()]

    def _convolutions(self) -> list[nn.Module]:
        return [conv for layer in self._layers() for conv in self._layer_convolutions(layer).values()]

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)


class _AllLayers:
    """What a replaced list iterates over: to be called, and no block for anything else."""

    def __init__(self, call: Callable[..., tuple[None, Tensor]]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[None, Tensor]:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"`{name}`: a list replaced by fastflow.accelerate iterates over one call of all its blocks; the blocks "
            "themselves are in its `children()`, or in the list again after `revert()`"
        )


def sum_of_skips(layers: Iterable[Any], arguments: dict[str, Any]) -> Tensor:
    """Return what a model makes of a list of blocks; the first of the `arguments` is what each block hands on."""
    first = next(iter(arguments))
    total: Tensor | None = None
    for f in layers:
        x, skip = f(**arguments)
        arguments = {**arguments, first: x}
        total = skip if total is None else total + skip
    assert total is not None
    return total


def _hooked(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def swapped(tensor: Tensor) -> Tensor:
    """Return rows for a gate whose first half is the sigmoid's in the order of `fastflow.ops.wn`: tanh first."""
    return torch.cat(tensor.chunk(2)[::-1])
