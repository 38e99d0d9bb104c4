"""Plain state dicts, with or without weight norm, alone or inside {"state_dict": ...} or {"model": ...}."""

from __future__ import annotations

from typing import Any

from .dle import without_reversed
from .errors import CheckpointError, quote
from .formats import Described, tensors_in

_WRAPPERS = ("state_dict", "model", "model_state_dict", "waveglow")


def describe(saved: Any) -> Described:
    tensors = tensors_in(saved)
    if isinstance(saved, dict):
        for wrapper in _WRAPPERS:
            tensors = tensors or tensors_in(saved.get(wrapper))
    if not tensors:
        kind = (
            f"a dict with the keys {', '.join(map(quote, list(saved)[:10]))}"
            if isinstance(saved, dict)
            else (f"a {type(saved).__name__}")
        )
        raise CheckpointError(f"it holds {kind}; expected a model or a state dict of named tensors")
    return Described("state dict", {}, without_reversed(tensors))
