"""WaveGlow's sizes from the shapes of its tensors, and the shapes from the sizes; and what all models need for that."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .errors import CheckpointError, quote
from .tensors import LazyTensor

Shapes = Mapping[str, tuple[int, ...]]

# Far above any model: they keep a file with nonsensical keys from making the lists below long.
_MAX_FLOWS = 256
_MAX_LAYERS = 64

COUNTER = ".num_batches_tracked"  # of batch normalisation, the only integer among weights


def complete(known: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The keyword arguments of `fastflow.models.WaveGlow` for tensors under their published names.

    `known` is what the file says of its configuration, perhaps nothing. The tensors decide all sizes; only
    what they cannot tell (the hop, which half a flow transforms) is taken from `known` alone. Raises
    CheckpointError with every contradiction between the two, or with every missing, unexpected or misshapen
    tensor.
    """
    config = infer(shapes_of(tensors))
    refuse_contradictions(_adopt(known, config))
    check_tensors("WaveGlow", config, published_shapes(config), tensors)
    return config


def shapes_of(tensors: Mapping[str, LazyTensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def refuse_contradictions(problems: list[str]) -> None:
    """Raise CheckpointError if there are any."""
    if problems:
        raise CheckpointError("its configuration contradicts its tensors:\n" + "\n".join(problems))


def check_tensors(model: str, config: Mapping[str, Any], expected: Shapes, tensors: Mapping[str, LazyTensor]) -> None:
    """Raise CheckpointError with every tensor that is missing, unexpected, misshapen or made of integers."""
    problems = compare(expected, shapes_of(tensors)) + [
        f"  not floating-point: {quote(key)} {_show(tensor.shape)} is {tensor.dtype}"
        for key, tensor in tensors.items()
        if not tensor.dtype.is_floating_point and not key.endswith(COUNTER)
    ]
    if problems:
        flat = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
        flat |= config.get("WN_config", {})
        sizes = ", ".join(f"{key} {value}" for key, value in flat.items())
        raise CheckpointError(
            f"its tensors are not those of a {model}, or not all of them. Most of them suggest the sizes\n"
            f"  ({sizes}),\nto which these do not fit:\n" + "\n".join(problems)
        )


def state_shapes(model: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every key of a model's state dict with its shape; ValueError for a configuration that makes no model."""
    import fastflow.models

    with torch.device("meta"):
        made = getattr(fastflow.models, model)(**config)
    return {key: tuple(value.shape) for key, value in made.state_dict().items()}


def infer(shapes: Shapes) -> dict[str, Any]:
    """The sizes that most of the tensors agree on, so that one wrong tensor is found wrong and not all the
    others."""
    channels, n_layers = flow_sizes(shapes)
    n_group = channels[0]
    condition = common(shapes, r"WN\.\d+\.cond_layer\.weight_v", 1)
    upsample = [size for key in ("upsample.weight", "upsample.bias") for size in shapes.get(key, ())[:1]]
    n_mel_channels = most_common([*upsample, condition // n_group, condition])
    conditioning = "group" if condition == n_mel_channels and n_group > 1 else "sample"
    win_length = common(shapes, r"upsample\.weight", 2) * (n_group if conditioning == "group" else 1)
    return {
        "n_mel_channels": n_mel_channels,
        "n_flows": len(channels),
        "n_group": n_group,
        **early_outputs(channels),
        "WN_config": {
            "n_layers": n_layers,
            "n_channels": common(shapes, r"WN\.\d+\.start\..*", 0),
            "kernel_size": common(shapes, r"WN\.\d+\.in_layers\.\d+\.weight_v", 2),
        },
        # Nothing of a stride is left in the tensors; the published windows overlap four times.
        "hop_length": max(1, win_length // 4),
        "win_length": win_length,
        "conditioning": conditioning,
        "alternate_halves": False,
    }


def flow_sizes(shapes: Shapes) -> tuple[list[int], int]:
    """How many channels each flow works on, and the layers of its network: what most of its tensors say."""
    flows: dict[int, list[int]] = {}
    layers: dict[int, set[int]] = {}
    for key, shape in shapes.items():
        if match := re.match(r"(?:WN|convinv)\.(\d{1,4})\.", key):
            flow = int(match[1])
            flows.setdefault(flow, []).extend(_channels(key, shape))
            if layer := re.match(r"WN\.\d+\.(?:in_layers|res_skip_layers)\.(\d{1,4})\.", key):
                layers.setdefault(flow, set()).add(int(layer[1]))
    n_layers = most_common(len(found) for found in layers.values())
    if not flows or len(flows) > _MAX_FLOWS or n_layers > _MAX_LAYERS:
        raise CheckpointError(
            f"it has {len(flows)} flows with {n_layers} layers; expected 1 to {_MAX_FLOWS} with 1 to {_MAX_LAYERS}"
        )
    return [most_common(flows[flow]) for flow in sorted(flows)], n_layers


def early_outputs(channels: list[int]) -> dict[str, int]:
    """After how many flows channels leave, and how many, for the channels that each flow works on."""
    early = next((flow for flow, count in enumerate(channels) if count < channels[0]), None)
    if early is None:  # no output leaves early
        return {"n_early_every": len(channels), "n_early_size": 2}
    return {"n_early_every": early, "n_early_size": channels[0] - channels[early]}


def common(shapes: Shapes, pattern: str, dimension: int) -> int:
    """The size that most of the tensors whose whole key matches have in one dimension."""
    wanted = re.compile(pattern)
    matching = (shape for key, shape in shapes.items() if wanted.fullmatch(key))
    return most_common(shape[dimension] for shape in matching if len(shape) > dimension)


def flow_channels(config: Mapping[str, Any], group: str = "n_group") -> list[int]:
    """How many channels each flow works on."""
    every, size = config["n_early_every"], config["n_early_size"]
    return [config[group] - size * (flow // every) for flow in range(config["n_flows"])]


def published_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every key of a WaveGlow's state dict, weight norm included, with its shape."""
    n_mel, n_group, wn = config["n_mel_channels"], config["n_group"], config["WN_config"]
    n_layers, width, kernel = wn["n_layers"], wn["n_channels"], wn["kernel_size"]
    grouped = config["conditioning"] == "group"
    condition = n_mel if grouped else n_mel * n_group
    window = config["win_length"] // n_group if grouped else config["win_length"]
    shapes: dict[str, tuple[int, ...]] = {
        "upsample.weight": (n_mel, n_mel, window),
        "upsample.bias": (n_mel,),
    }

    def normed(name: str, rows: int, columns: int, taps: int) -> None:
        shapes[f"{name}.bias"] = (rows,)
        shapes[f"{name}.weight_g"] = (rows, 1, 1)
        shapes[f"{name}.weight_v"] = (rows, columns, taps)

    for flow, channels in enumerate(flow_channels(config)):
        half = channels // 2
        for layer in range(n_layers):
            normed(f"WN.{flow}.in_layers.{layer}", 2 * width, width, kernel)
            normed(f"WN.{flow}.res_skip_layers.{layer}", 2 * width if layer < n_layers - 1 else width, width, 1)
        normed(f"WN.{flow}.start", width, half, 1)
        normed(f"WN.{flow}.cond_layer", 2 * width * n_layers, condition, 1)
        shapes[f"WN.{flow}.end.weight"] = (2 * half, width, 1)
        shapes[f"WN.{flow}.end.bias"] = (2 * half,)
        shapes[f"convinv.{flow}.conv.weight"] = (channels, channels, 1)
    return shapes


def compare(expected: Shapes, found: Shapes) -> list[str]:
    """One line for every tensor that is missing, unexpected or of another shape."""
    missing = [f"  missing: {quote(key)} {_show(shape)}" for key, shape in expected.items() if key not in found]
    unexpected = [f"  unexpected: {quote(key)} {_show(shape)}" for key, shape in found.items() if key not in expected]
    misshapen = [
        f"  misshapen: {quote(key)} is {_show(found[key])}, expected {_show(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    return missing + unexpected + misshapen


def _channels(key: str, shape: tuple[int, ...]) -> list[int]:
    """What one tensor says of the channels of its flow."""
    name = key.split(".", 2)[2]
    if name == "conv.weight":
        return list(shape[:2])
    if name in ("end.weight", "end.bias"):
        return list(shape[:1])
    if name == "start.weight_v":
        return [2 * columns for columns in shape[1:2]]
    return []


def most_common(values: Iterable[int]) -> int:
    counted = Counter(value for value in values if value > 0).most_common(1)
    return counted[0][0] if counted else 1


def differences(known: Mapping[str, Any], config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """One line for each of `names`, "a" or "a.b", of which the file says something else than its tensors."""
    problems = []
    for name in names:
        outer, _, inner = name.partition(".")
        said, found = known.get(outer), config[outer]
        if inner:
            said, found = said.get(inner) if isinstance(said, Mapping) else None, found[inner]
        given = outer in known and (not inner or (isinstance(known[outer], Mapping) and inner in known[outer]))
        if given and not (type(said) is type(found) and said == found):
            problems.append(f"  {name}: the file says {_value(said)}, its tensors say {_value(found)}")
    return problems


def not_whole(known: Mapping[str, Any], least: Mapping[str, int]) -> list[str]:
    """One line for each name that the file gives and that is no whole number of at least so much."""
    return [
        f"  {name}: the file says {_value(known[name])}, expected a whole number >= {limit}"
        for name, limit in least.items()
        if name in known and not (type(known[name]) is int and limit <= known[name] < 2**31)
    ]


def adopt_early(known: Mapping[str, Any], config: dict[str, Any], group: str = "n_group") -> list[str]:
    """Puts the early outputs that the file states into `config`; a line if no flow has the channels they mean."""
    early = {name: known.get(name, config[name]) for name in ("n_early_every", "n_early_size")}
    said, found = flow_channels(config | early, group), flow_channels(config, group)
    if said != found:
        return [f"  channels of the flows: the file says {_value(said)}, its tensors say {_value(found)}"]
    config |= early
    return []


def _adopt(known: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    """Puts into `config` what only `known` can tell; one line for each value that is impossible or
    contradicts it."""
    sizes = ("n_mel_channels", "n_flows", "n_group", "win_length", "conditioning")
    problems = differences(known, config, [*sizes, *(f"WN_config.{name}" for name in config["WN_config"])])
    problems += not_whole(known, {"n_early_every": 1, "n_early_size": 0, "hop_length": 1})
    if not isinstance(known.get("alternate_halves", False), bool):
        problems.append(
            f"  alternate_halves: the file says {_value(known['alternate_halves'])}, expected true or false"
        )
    if problems:
        return problems
    problems = adopt_early(known, config)
    config["hop_length"] = known.get("hop_length", config["hop_length"])
    config["alternate_halves"] = known.get("alternate_halves", False)
    if config["hop_length"] > config["win_length"]:
        problems.append(f"  hop_length {config['hop_length']} is larger than win_length {config['win_length']}")
    return problems


def _show(shape: Iterable[int]) -> str:
    return str(list(shape))


def _value(value: Any) -> str:
    """A value for a message; what a file says may be anything, nested without end."""
    small = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    if small or (isinstance(value, list) and all(type(item) is int for item in value)):
        return str(value)
    return quote(value)
