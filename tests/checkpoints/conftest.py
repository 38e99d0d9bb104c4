"""Files to load: golden weights in every spelling, saved in both of torch.save's formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import golden

State = dict[str, torch.Tensor]
Save = Callable[..., Path]


def split_layers(state: State, layers: int) -> State:
    """Published weights in the older form: `cond_layers.i`, and `res_layers.i` apart from `skip_layers.i`."""
    split: State = {}
    for key, value in state.items():
        if ".cond_layer." in key:
            for i, part in enumerate(value.chunk(layers)):
                split[key.replace("cond_layer.", f"cond_layers.{i}.")] = part
        elif ".res_skip_layers." in key:
            last = f"res_skip_layers.{layers - 1}." in key  # has skip rows only
            parts = (value,) if last else value.chunk(2)
            for kind, part in zip(("skip", "res"), reversed(parts), strict=False):
                split[key.replace("res_skip_layers", f"{kind}_layers")] = part
        else:
            split[key] = value
    return split


@pytest.fixture
def tiny() -> State:
    """The weights of `waveglow_tiny` under the published names."""
    return golden.make_state_dict("waveglow_tiny")


@pytest.fixture(params=["zip", "legacy"])
def save_torch(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    """torch.save in the zip format, then in the one before PyTorch 1.6; gives the file."""

    def save(value: Any, name: str = "model.pt") -> Path:
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save
