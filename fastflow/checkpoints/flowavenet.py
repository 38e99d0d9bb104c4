"""FloWaveNet's sizes from the shapes of its tensors.

ksw0306/FloWaveNet saves {"state_dict": ..., "optimizer": ..., "scheduler": ..., ...}, keys perhaps behind `module.`;
actnorm's `initialized` is in no file, and weights that were saved are initialised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError
from .sizes import (
    Shapes,
    check_tensors,
    common,
    differences,
    most_common,
    not_whole,
    refuse_contradictions,
    shapes_of,
    state_shapes,
)
from .tensors import LazyTensor

_MAX_BLOCKS = 16  # lengths are multiples of 2**blocks
_COUPLING = r"blocks\.\d+\.flows\.\d+\.coupling\.net"


def complete(known: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The keyword arguments of `fastflow.models.FloWaveNet` for tensors under their published names.

    Raises CheckpointError as `sizes.complete` does.
    """
    config = infer(shapes_of(tensors))
    refuse_contradictions(_adopt(known, config))
    check_tensors("FloWaveNet", config, state_shapes("FloWaveNet", config), tensors)
    return config


def infer(shapes: Shapes) -> dict[str, Any]:
    """The sizes that most of the tensors agree on."""
    flows: dict[int, set[int]] = {}
    layers: dict[tuple[int, int], set[int]] = {}
    priors: set[int] = set()
    for key in shapes:
        if match := re.match(r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.", key):
            block, flow = int(match[1]), int(match[2])
            flows.setdefault(block, set()).add(flow)
            if layer := re.match(_COUPLING + r"\.res_blocks\.(\d{1,4})\.", key):
                layers.setdefault((block, flow), set()).add(int(layer[1]))
        elif match := re.match(r"blocks\.(\d{1,4})\.prior\.", key):
            priors.add(int(match[1]))
    n_block, n_flow = len(flows), most_common(len(found) for found in flows.values())
    n_layer = most_common(len(found) for found in layers.values())
    # Every layer has 18 tensors: names alone must not make a small file ask for a large model.
    if n_block > _MAX_BLOCKS or n_block * n_flow * n_layer > len(shapes):
        raise CheckpointError(
            f"it has {n_block} blocks of {n_flow} flows with {n_layer} layers, and {len(shapes)} tensors; "
            f"expected 1 to {_MAX_BLOCKS} blocks, and 18 tensors for each layer"
        )
    # Channels double with every block, and halve again where a half of them leaves; the conditioning's only double.
    factors = {block: 2 ** (block + 1 - sum(prior < block for prior in priors)) for block in sorted(flows)}

    def sizes(pattern: str, dimension: int) -> list[tuple[int, int]]:
        """The factor of its block, and the size in one dimension, of each tensor of a flow that matches."""
        found = (
            (re.fullmatch(r"blocks\.(\d{1,4})\.flows\.\d{1,4}\." + pattern, key), shape)
            for key, shape in shapes.items()
        )
        return [(factors[int(match[1])], shape[dimension]) for match, shape in found if match and shape[dimension:]]

    in_channel = most_common(size // factor for factor, size in sizes(r"actnorm\.(?:loc|scale)", 1))
    rows = sizes(r"coupling\.net\.final_conv\.3\.conv\.(?:weight|bias)", 0)
    return {
        "in_channel": in_channel,
        "cin_channel": common(shapes, r"blocks\.0\.flows\..*\.(?:filter|gate)_conv_c\.weight_v", 1),
        "n_block": n_block,
        "n_flow": n_flow,
        "n_layer": n_layer,
        "block_per_split": min(priors) + 1 if priors else n_block,  # without a split, any number from n_block on
        "filter_size": common(shapes, _COUPLING + r"\.front_conv\.0\.conv\.(?:bias|weight_g|weight_v)", 0),
        "affine": 2 * sum(size == in_channel * factor for factor, size in rows) >= len(rows),
    }


def _adopt(known: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    """Puts into `config` what only `known` can tell; one line for each value that contradicts it."""
    unseen = config["block_per_split"] == config["n_block"] and isinstance(known.get("block_per_split"), int)
    if unseen and known["block_per_split"] > config["n_block"]:
        config["block_per_split"] = known["block_per_split"]
    return not_whole(known, {"block_per_split": 1}) or differences(known, config, list(config))
