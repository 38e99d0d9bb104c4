"""The published configurations in `recipes`, and the command that takes them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result

import fastflow
from fastflow import models
from fastflow.audio import write_audio

Run = Callable[..., Result]
RECIPES = Path(fastflow.__file__).parents[1] / "recipes"
WN = {"n_layers": 1, "n_channels": 8}
SMALL: dict[str, dict[str, Any]] = {  # in place of sizes that take minutes
    "waveglow": {"n_flows": 5, "WN_config": WN},
    "squeezewave": {"n_flows": 3, "WN_config": WN},
    "flowavenet": {"n_flow": 1, "n_layer": 1, "filter_size": 8},
    "glow": {"n_steps": 1, "hidden_channels": 8},
}
WEIGHTS = {"waveglow": 87_879_272, "squeezewave": 23_665_184, "flowavenet": 182_644_788}  # of the published checkpoints

pytestmark = pytest.mark.skipif(not RECIPES.is_dir(), reason="the recipes are not installed")


def recipe(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def test_every_recipe_is_here() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == set(SMALL)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    arguments = recipe(name)["model"]
    with torch.device("meta"):
        model = getattr(models, arguments.pop("name"))(**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == WEIGHTS[name]


def test_glow_s_sizes_are_the_defaults() -> None:
    """With which it takes seconds to begin, whatever the device."""
    arguments = recipe("glow")["model"]
    assert arguments.pop("name") == "Glow"
    for key, value in arguments.items():
        assert inspect.signature(models.Glow).parameters[key].default == value


@pytest.mark.parametrize("name", SMALL)
def test_the_command_runs_as_it_stands(run: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the sizes, the batch and the number of steps."""
    settings = recipe(name)
    settings["model"].update(SMALL[name])
    settings |= {"steps": 2, "batch_size": 2}
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    if name == "glow":
        np.save("data/images.npy", np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
    else:
        noise = 0.1 * torch.randn(22050, generator=torch.Generator().manual_seed(0))
        write_audio(Path("data/a.wav"), noise, 22050)
    Path(f"{name}.yaml").write_text(yaml.safe_dump(settings))
    result = run("train", "--config", f"{name}.yaml", "--data", "data")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{settings['output']}: 2 steps")
    facts = json.loads(Path(f"{name}.json").read_text())
    assert facts["settings"]["lr"] == float(settings["lr"])
    assert facts["progress"]["skipped_steps"] == 0
    for key in {"segment", "clip"} & settings.keys():
        assert facts["settings"][key] == settings[key]


@pytest.mark.parametrize("name", SMALL)
def test_every_setting_is_understood(run: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the device, before the model is made."""
    monkeypatch.chdir(tmp_path)
    result = run("train", "--config", RECIPES / f"{name}.yaml", "--data", tmp_path, "--device", "nowhere")
    assert result.exit_code == 2
    assert "`--device nowhere` cannot be used" in result.stderr
