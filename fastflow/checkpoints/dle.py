"""NVIDIA DeepLearningExamples: {"state_dict": ..., "config": {...}, "epoch": ..., ...}, keys perhaps behind
`module.`.

Its network keeps one `cond_layers.i` per layer, which `published.py` concatenates.
"""

from __future__ import annotations

from typing import Any

from .formats import Described, tensors_in

_CONFIG = ("n_mel_channels", "n_flows", "n_group", "n_early_every", "n_early_size", "WN_config")


def matches(saved: Any) -> bool:
    return (
        isinstance(saved, dict) and isinstance(saved.get("config"), dict) and bool(tensors_in(saved.get("state_dict")))
    )


def describe(saved: Any) -> Described:
    known = {name: saved["config"][name] for name in _CONFIG if name in saved["config"]}
    return Described("DeepLearningExamples state dict", known, without_reversed(tensors_in(saved["state_dict"])))


def without_reversed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Drops the second, reversed lists of the same modules that its TorchScript export adds."""
    return {
        key: tensor for key, tensor in tensors.items() if not {"WN_rev", "convinv_rev"}.intersection(key.split("."))
    }
