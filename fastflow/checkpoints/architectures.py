"""The models that checkpoints hold, told apart by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import flowavenet, sizes, squeezewave
from .published import fused, split_norms, without_prefix
from .tensors import LazyTensor

_Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Architecture:
    """What the readers know of one model."""

    name: str  # of the class in `fastflow.models`
    keys: str  # how its keys look, in words
    shown_by: re.Pattern[str]  # a key that only it has
    anchor: re.Pattern[str]  # matches keys that it has; group 1 is what a wrapper put before
    normed: re.Pattern[str]  # matches what belongs to a convolution with weight norm: the convolution, and the rest
    complete: Callable[[Mapping[str, Any], _Tensors], dict[str, Any]]
    fuse: Callable[[_Tensors], dict[str, LazyTensor]] = dict

    def canonical(self, tensors: _Tensors) -> dict[str, LazyTensor]:
        """The same tensors under their published names; a key that fits nothing keeps its name."""
        return self.fuse(split_norms(without_prefix(tensors, self.anchor), self.normed))


_GROUPED = re.compile(r"(.*?)(?:WN|wavenet|convinv)\.\d+\.")
_BLOCKS = re.compile(r"(.*?)(?:blocks\.\d+\.(?:flows\.\d+|prior)|upsample_conv\.\d+)\.")

# The first that fits counts: SqueezeWave's keys look like WaveGlow's but for the layers that it splits in three.
ARCHITECTURES = (
    Architecture(
        "FloWaveNet",
        "blocks.k.flows.i",
        re.compile(r".*?blocks\.\d+\.flows\.\d+\."),
        _BLOCKS,
        re.compile(
            r"(blocks\.\d{1,4}\.(?:flows\.\d{1,4}\.coupling\.net|prior)\."
            r"(?:front_conv\.0\.conv|final_conv\.1\.conv|res_blocks\.\d{1,4}\."
            r"(?:(?:filter|gate)_conv\.conv|res_conv|skip_conv|(?:filter|gate)_conv_c))"
            r"|upsample_conv\.\d{1,4})\.(.+)",
            re.DOTALL,
        ),
        flowavenet.complete,
    ),
    Architecture(
        "SqueezeWave",
        "WN.k.in_layers.i.j",
        re.compile(r".*?WN\.\d+\.in_layers\.\d+\.\d+\."),
        _GROUPED,
        re.compile(r"(WN\.\d{1,4}\.(?:start|cond_layer|res_skip_layers\.\d{1,4}))\.(.+)", re.DOTALL),
        squeezewave.complete,
    ),
    Architecture(
        "WaveGlow",
        "WN.k or convinv.k",
        _GROUPED,
        _GROUPED,
        re.compile(
            r"(WN\.\d{1,4}\.(?:start|cond_layer|(?:in|res_skip|res|skip|cond)_layers\.\d{1,4}))\.(.+)", re.DOTALL
        ),
        sizes.complete,
        fused,
    ),
)


def of(tensors: _Tensors) -> Architecture | None:
    """The architecture whose tensors these look like."""
    return next((known for known in ARCHITECTURES if any(map(known.shown_by.match, tensors))), None)


def name_of(model: object) -> str:
    """The name under which a model is saved. Raises TypeError for one that no file can hold."""
    import fastflow.models

    for known in ARCHITECTURES:
        if isinstance(model, getattr(fastflow.models, known.name)):
            return known.name
    names = ", ".join(known.name for known in ARCHITECTURES)
    raise TypeError(f"`model` must be one of {names}; got {type(model).__name__}")
