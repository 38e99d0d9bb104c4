"""SqueezeWave's sizes from the shapes of its tensors.

tianrengao/SqueezeWave pickles the whole module, as NVIDIA/waveglow does (`nvidia.py`). Its first versions call the
class WaveGlow, and `n_audio_channel` `n_group`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sizes import (
    Shapes,
    adopt_early,
    check_tensors,
    common,
    differences,
    early_outputs,
    flow_sizes,
    not_whole,
    refuse_contradictions,
    shapes_of,
    state_shapes,
)
from .tensors import LazyTensor


def complete(known: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The keyword arguments of `fastflow.models.SqueezeWave` for tensors under their published names.

    Raises CheckpointError as `sizes.complete` does.
    """
    config = infer(shapes_of(tensors))
    if "n_group" in known:
        known = {"n_audio_channel": known["n_group"], **known}
    sizes = ["n_mel_channels", "n_flows", "n_audio_channel", *(f"WN_config.{name}" for name in config["WN_config"])]
    problems = differences(known, config, sizes) + not_whole(known, {"n_early_every": 1, "n_early_size": 0})
    refuse_contradictions(problems or adopt_early(known, config, "n_audio_channel"))
    check_tensors("SqueezeWave", config, state_shapes("SqueezeWave", config), tensors)
    return config


def infer(shapes: Shapes) -> dict[str, Any]:
    """The sizes that most of the tensors agree on."""
    channels, n_layers = flow_sizes(shapes)
    return {
        "n_mel_channels": common(shapes, r"WN\.\d+\.cond_layer\.weight_v", 1),
        "n_flows": len(channels),
        "n_audio_channel": channels[0],
        **early_outputs(channels),
        "WN_config": {
            "n_layers": n_layers,
            "n_channels": common(shapes, r"WN\.\d+\.start\..*", 0),
            "kernel_size": common(shapes, r"WN\.\d+\.in_layers\.\d+\.1\.weight", 2),
        },
    }
