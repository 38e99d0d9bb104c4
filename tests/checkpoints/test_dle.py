from __future__ import annotations

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, read
from tests import golden
from tests.checkpoints.conftest import Save, State, split_layers

FILE = golden.GOLDEN / "waveglow_tiny_dle.pt"


def test_the_golden_checkpoint() -> None:
    checkpoint = read(FILE)
    assert checkpoint.config == golden.config("waveglow_tiny")
    expected = golden.make_state_dict("waveglow_tiny")
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in expected.items())
    assert golden.audio_error(fastflow.load(FILE), "waveglow_tiny") <= 1e-4


@pytest.mark.parametrize("prefix", ["", "module.", "module.1."])
def test_training_checkpoint_with_reversed_lists(prefix: str, tiny: State, save_torch: Save) -> None:
    state = split_layers(tiny, 4)
    for key in list(state):
        head, _, rest = key.partition(".")
        if head in ("WN", "convinv"):
            flow, _, leaf = rest.partition(".")
            state[f"{head}_rev.{5 - int(flow)}.{leaf}"] = state[key]
    saved = {
        "epoch": 1000,
        "cuda_rng_state_all": torch.zeros(2, 16, dtype=torch.uint8),
        "random_rng_states_all": [(3, (1, 2, 3), None)],
        "config": {**golden.config("waveglow_tiny"), "unrelated": "value"},
        "state_dict": {f"{prefix}{key}": value for key, value in state.items()},
        "optimizer": {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "scaler": {"scale": 65536.0},
    }
    model = fastflow.load(save_torch(saved))
    assert model.config == golden.config("waveglow_tiny")
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


def test_a_config_that_contradicts_the_weights(tiny: State, save_torch: Save) -> None:
    config = {"n_flows": 12, "WN_config": {"n_channels": 512, "n_layers": 8, "kernel_size": 3}}
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch({"state_dict": tiny, "config": config}))
    for line in (
        "n_flows: the file says 12",
        "WN_config.n_channels: the file says 512",
        "WN_config.n_layers: the file",
    ):
        assert line in str(caught.value)
