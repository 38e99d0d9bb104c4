"""NVIDIA/waveglow: the whole module is pickled, as {"model": WaveGlow, "iteration": ..., "optimizer": ...}.
tianrengao/SqueezeWave does the same with a SqueezeWave.

The module's class and its attributes give the configuration; its parameters are collected as `state_dict()`
would. Attributes that are only caches (`W_inverse` of an invertible convolution, the folded `weight` beside
weight norm's g and v) are not parameters and are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError, quote
from .formats import Described
from .pickles import Recorded
from .tensors import LazyTensor, StoredTensor

_MAX_MODULES = 50_000  # visited; a WaveGlow-256 has 434
_MAX_DEPTH = 16
_WRAPPERS = ("DataParallel", "DistributedDataParallel")


def matches(saved: Any) -> bool:
    return isinstance(_module(saved), Recorded)


def describe(saved: Any) -> Described:
    module = _unwrapped(_module(saved))
    if module.cls.name not in ("WaveGlow", "SqueezeWave"):
        raise CheckpointError(
            f"it holds a module of class {quote(str(module.cls))}, which is not a WaveGlow or SqueezeWave"
        )
    tensors: dict[str, LazyTensor] = {}
    _collect(module, "", tensors, [0], 0)
    _check_dilations(module)
    known = {
        name: module.state[name]
        for name in ("n_flows", "n_group", "n_audio_channel", "n_early_every", "n_early_size")
        if name in module.state
    }
    # glow_old.py, the first published model's, lets every other flow transform the first half.
    known["alternate_halves"] = module.cls.module.rpartition(".")[2] == "glow_old"
    stride = _child(module, "upsample").state.get("stride")
    if isinstance(stride, tuple) and len(stride) == 1:
        known["hop_length"] = stride[0]
    return Described(f"pickled module {module.cls}", known, tensors)


def _module(saved: Any) -> Any:
    return saved.get("model") if isinstance(saved, dict) else saved


def _unwrapped(module: Recorded) -> Recorded:
    if module.cls.name in _WRAPPERS:
        inner = _children(module).get("module")
        if inner is None:
            raise CheckpointError(f"it holds a {module.cls.name} without a module in it")
        return inner
    return module


def _table(module: Recorded, name: str) -> Mapping[Any, Any]:
    table = module.state.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _children(module: Recorded) -> dict[str, Recorded]:
    return {
        name: child
        for name, child in _table(module, "_modules").items()
        if isinstance(name, str) and isinstance(child, Recorded)
    }


def _child(module: Recorded, name: str) -> Recorded:
    """The submodule of that name; one without anything in it where there is none."""
    return _children(module).get(name) or Recorded(module.cls, ())


def _collect(module: Recorded, prefix: str, into: dict[str, LazyTensor], visited: list[int], depth: int) -> None:
    visited[0] += 1
    # Modules may share modules, or hold themselves: a small file can describe an endless tree.
    if visited[0] > _MAX_MODULES or depth > _MAX_DEPTH:
        raise CheckpointError(f"its modules are nested deeper than {_MAX_DEPTH} or are more than {_MAX_MODULES}")
    for table in ("_parameters", "_buffers"):
        for name, value in _table(module, table).items():
            if isinstance(value, StoredTensor):
                into[f"{prefix}{name}"] = value
    for name, child in _children(module).items():
        _collect(child, f"{prefix}{name}.", into, visited, depth + 1)


def _check_dilations(module: Recorded) -> None:
    """Shapes do not show a dilation: one that is not the published 2^layer would load and give wrong
    numbers."""
    for flow, wn in _children(_child(module, "WN")).items():
        for layer, conv in enumerate(_children(_child(wn, "in_layers")).values()):
            dilation = conv.state.get("dilation")
            if isinstance(dilation, tuple) and dilation != (2**layer,):
                raise CheckpointError(
                    f"layer {layer} of {quote(f'WN.{flow}')} is not dilated by {2**layer},"
                    " as the published WaveGlow's is"
                )
