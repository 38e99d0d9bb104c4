"""SqueezeWave's checkpoints: the pickled module, as NVIDIA's are."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import fastflow
from fastflow.checkpoints import CheckpointError, convert, read
from fastflow.models import SqueezeWave
from tests.checkpoints.conftest import Save
from tests.models import squeezewave_twin as twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning"),
]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> twins.SqueezeWave:
    """The twin with its classes under the published names: `glow.SqueezeWave` and so on."""
    module = types.ModuleType("glow")
    monkeypatch.setitem(sys.modules, "glow", module)
    for cls in (twins.WN, twins.Upsample1d, twins.Invertible1x1Conv, twins.SqueezeWave):
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", "glow")
    return twins.filled(twins.SqueezeWave(5, 4, 128, 2, 16, layers=2, width=12))


CONFIG = {
    "n_mel_channels": 5,
    "n_flows": 4,
    "n_audio_channel": 128,
    "n_early_every": 2,
    "n_early_size": 16,
    "WN_config": {"n_layers": 2, "n_channels": 12, "kernel_size": 3},
}


def same_audio(model: fastflow.models.Vocoder, twin: twins.SqueezeWave) -> bool:
    mel = torch.ones(1, 5, 3)
    got = model.infer(mel, 0.7, generator=torch.Generator().manual_seed(1))
    return torch.allclose(got, twin.infer(mel, 0.7, torch.Generator().manual_seed(1)), rtol=1e-4, atol=1e-4)


def test_a_pickled_module(published: twins.SqueezeWave, save_torch: Save, tmp_path: Path) -> None:
    path = save_torch({"model": published, "iteration": 244000, "optimizer": {}, "learning_rate": 4e-4})
    model = fastflow.load(path)
    assert isinstance(model, SqueezeWave) and not model.training
    assert model.config == CONFIG
    assert same_audio(model, published)
    convert(path, tmp_path / "m.safetensors")
    again = fastflow.load(tmp_path / "m.safetensors")
    assert isinstance(again, SqueezeWave) and same_audio(again, published)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_counters_stay_whole_in_half_precision(published: twins.SqueezeWave, save_torch: Save, tmp_path: Path) -> None:
    path = save_torch(published.state_dict())
    convert(path, tmp_path / "m.safetensors", dtype=torch.float16)
    for source in (path, tmp_path / "m.safetensors"):
        state = fastflow.load(source, dtype=torch.float16).state_dict()
        kinds = {key.endswith("num_batches_tracked"): value.dtype for key, value in state.items()}
        assert kinds == {True: torch.int64, False: torch.float16}


def test_the_first_versions_call_it_waveglow(
    published: twins.SqueezeWave, save_torch: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = type("WaveGlow", (twins.SqueezeWave,), {"__module__": "glow"})
    monkeypatch.setattr(sys.modules["glow"], "WaveGlow", renamed, raising=False)
    published.__class__ = renamed
    published.n_group = published.__dict__.pop("n_audio_channel")
    model = fastflow.load(save_torch({"model": nn.DataParallel(published)}))
    assert isinstance(model, SqueezeWave) and model.config == CONFIG


def test_no_early_outputs_and_what_the_file_says(published: twins.SqueezeWave, save_torch: Save) -> None:
    published.n_early_every = 3
    with pytest.raises(CheckpointError, match="channels of the flows: the file says"):
        fastflow.load(save_torch(published))
    published.n_early_every, published.n_flows = 2, 5
    with pytest.raises(CheckpointError, match="n_flows: the file says 5, its tensors say 4"):
        fastflow.load(save_torch(published))


def test_differences_are_listed(published: twins.SqueezeWave, save_torch: Save) -> None:
    state = dict(published.state_dict())
    del state["WN.1.in_layers.0.0.running_var"]
    state["WN.2.end.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(state))
    for line in (
        "its tensors are not those of a SqueezeWave",
        "missing: `WN.1.in_layers.0.0.running_var` [12]",
        "misshapen: `WN.2.end.bias` is [7], expected [112]",
    ):
        assert line in str(caught.value)


def test_a_kernel_that_is_not_published(published: twins.SqueezeWave, save_torch: Save) -> None:
    state = dict(published.state_dict())
    for key in state:
        if ".in_layers." in key and key.endswith(".1.weight"):
            state[key] = torch.ones(12, 1, 5)
    with pytest.raises(CheckpointError, match="kernel_size of 3, as published; got 5"):
        read(save_torch(state))
