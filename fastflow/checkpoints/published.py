"""The published names of tensors, and every other spelling of them.

WaveGlow's, published (NVIDIA/waveglow, glow.py) are `WN.k.cond_layer`, `WN.k.res_skip_layers.i` and weight norm as
`weight_g` and `weight_v`. The functions here bring to that form
- a prefix that a wrapper put before every key (`module.`, `waveglow.`), here of any model,
- weight norm as `parametrizations.weight.original0` and `original1`, and weights without weight norm, of any model,
- one `cond_layers.i` per layer (glow_old.py, DeepLearningExamples): concatenated,
- separate `res_layers.i` and `skip_layers.i` (the first glow.py): concatenated, residual rows first.
The norms are per output channel, so concatenating g and v concatenates the weights exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from .tensors import LazyTensor, Normed, Rows

_PIECE = re.compile(r"WN\.(\d{1,4})\.(res|skip|cond)_layers\.(\d{1,4})\.(weight_g|weight_v|bias)")
_SPELLINGS = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def without_prefix(tensors: Mapping[str, LazyTensor], anchor: re.Pattern[str]) -> dict[str, LazyTensor]:
    """Take off the prefix of most of the keys that match `anchor`, whose first group it is."""
    prefixes = Counter(match[1] for key in tensors if (match := anchor.match(key)))
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    result: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        # A name that exists with and without the prefix keeps it, to be reported as unexpected.
        result[key if name != key and name in tensors else name] = tensor
    return result


def split_norms(tensors: Mapping[str, LazyTensor], normed: re.Pattern[str]) -> dict[str, LazyTensor]:
    """Bring weight norm to g and v where `normed` matches a key; its groups are the convolution and the rest."""
    result: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        match = normed.fullmatch(key)
        if match is None:
            result[key] = tensor
            continue
        conv, leaf = match.groups()
        name = f"{conv}.{_SPELLINGS.get(leaf, leaf)}"
        if name != key and name in tensors:
            result[key] = tensor
        elif (
            leaf == "weight"
            and len(tensor.shape) > 1
            and not any(f"{conv}.{other}" in tensors for other in ("weight_g", "weight_v", *_SPELLINGS))
        ):
            result[f"{conv}.weight_g"] = Normed(tensor, "g")
            result[f"{conv}.weight_v"] = Normed(tensor, "v")
        else:
            result[name] = tensor
    return result


def fused(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Concatenate what older WaveGlows keep apart."""
    pieces: dict[tuple[str, str, str], dict[int, str]] = {}
    for key in tensors:
        if match := _PIECE.fullmatch(key):
            flow, kind, layer, leaf = match.groups()
            pieces.setdefault((flow, kind, leaf), {})[int(layer)] = key
    result = dict(tensors)

    def fuse(name: str, keys: list[str]) -> None:
        parts = [tensors[key] for key in keys]
        if name in tensors or any(not part.shape or part.shape[1:] != parts[0].shape[1:] for part in parts):
            return  # reported later, under the names that the file uses
        result[name] = Rows(parts)
        for key in keys:
            del result[key]

    for (flow, kind, leaf), layers in pieces.items():
        if kind == "cond" and sorted(layers) == list(range(len(layers))):
            fuse(f"WN.{flow}.cond_layer.{leaf}", [layers[layer] for layer in sorted(layers)])
        if kind == "skip":
            residual = pieces.get((flow, "res", leaf), {})
            for layer, key in layers.items():
                parts = [residual[layer], key] if layer in residual else [key]
                fuse(f"WN.{flow}.res_skip_layers.{layer}.{leaf}", parts)
    return result
