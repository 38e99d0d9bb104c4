from __future__ import annotations

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, sizes
from fastflow.models import WaveGlow
from tests import golden
from tests.checkpoints.conftest import Save, State

CONFIGS = [
    {"n_mel_channels": 80, "n_flows": 3, "n_group": 8, "n_early_every": 4, "n_early_size": 2},
    {"n_mel_channels": 80, "n_flows": 4, "n_group": 16, "n_early_every": 2, "n_early_size": 4},
    {"n_mel_channels": 10, "n_flows": 5, "n_group": 8, "n_early_every": 1, "n_early_size": 1},
    {"n_mel_channels": 20, "n_flows": 4, "n_group": 32, "n_early_every": 2, "n_early_size": 2, "conditioning": "group"},
    {"n_mel_channels": 20, "n_flows": 2, "n_group": 4, "n_early_every": 9, "n_early_size": 2, "hop_length": 64,
     "win_length": 256},
]  # fmt: skip


def config_of(given: dict[str, object]) -> dict[str, object]:
    base = {"hop_length": 256, "win_length": 1024, "conditioning": "sample", "alternate_halves": False}
    return base | {"WN_config": {"n_layers": 2, "n_channels": 6, "kernel_size": 5}} | given


@pytest.mark.parametrize("given", [config for config in CONFIGS if config["n_early_size"] % 2 == 0])
def test_shapes_are_those_of_the_model_and_sizes_come_back(given: dict[str, int]) -> None:
    config = config_of(given)
    shapes = {key: tuple(value.shape) for key, value in WaveGlow(**config).state_dict().items()}
    assert sizes.published_shapes(config) == shapes
    expected = dict(config)
    if config["n_early_every"] >= config["n_flows"]:  # cannot be seen
        expected |= {"n_early_every": config["n_flows"], "n_early_size": 2}
    assert sizes.infer(shapes) == expected


def test_the_published_size() -> None:
    shapes = {key: tuple(shape) for key, shape in golden.spec("waveglow_256").items()}
    assert len(shapes) == 686
    assert sizes.infer(shapes) == golden.config("waveglow_256")
    assert sizes.published_shapes(golden.config("waveglow_256")) == shapes


def test_all_differences_at_once_each_with_shapes(tiny: State, save_torch: Save) -> None:
    del tiny["WN.3.end.weight"], tiny["upsample.bias"]
    tiny |= {
        "optimizer.lr": torch.zeros(()),
        "WN.99.start.bias": torch.zeros(16),
        "WN.0.in_layers.2.weight_v": torch.zeros(32, 16, 5),
        "convinv.1.conv.weight": torch.ones(8, 8),
        "WN.2.end.bias": torch.zeros(6, dtype=torch.int32),
    }
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(tiny))
    message = str(caught.value)
    for line in (
        "missing: `WN.3.end.weight` [6, 16, 1]",
        "missing: `upsample.bias` [8]",
        "missing: `convinv.6.conv.weight`",
        "unexpected: `optimizer.lr` []",
        "unexpected: `WN.99.start.bias` [16]",
        "misshapen: `WN.0.in_layers.2.weight_v` is [32, 16, 5], expected [32, 16, 3]",
        "misshapen: `convinv.1.conv.weight` is [8, 8], expected [8, 8, 1]",
        "not floating-point: `WN.2.end.bias` [6] is torch.int32",
        "n_group 8",
    ):
        assert line in message, message
    assert "res_skip_layers" not in message.replace("`WN.6.res_skip_layers", "")  # nothing that fits is listed


@pytest.mark.parametrize("wrong", ["upsample.weight", "convinv.0.conv.weight", "WN.0.start.weight_v", "WN.0.end.bias"])
def test_one_wrong_tensor_is_found_wrong_and_not_the_others(wrong: str, tiny: State, save_torch: Save) -> None:
    tiny[wrong] = torch.ones([size + 2 for size in tiny[wrong].shape])
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(tiny))
    lines = [
        line for line in str(caught.value).splitlines() if line.startswith(("  missing", "  unexp", "  misshapen"))
    ]
    assert len(lines) == 1
    assert f"`{wrong}`" in lines[0]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"n_flows": 12}, "n_flows: the file says 12, its tensors say 6"),
        ({"n_flows": 10**12}, "n_flows: the file says 1000000000000, its tensors say 6"),
        ({"n_group": 8.0}, "n_group: the file says 8.0, its tensors say 8"),
        ({"WN_config": {"n_channels": 256}}, "WN_config.n_channels: the file says 256, its tensors say 16"),
        ({"n_early_every": 0}, "n_early_every: the file says 0, expected a whole number >= 1"),
        ({"n_early_every": True}, "n_early_every: the file says True, expected a whole number >= 1"),
        ({"n_early_size": "2"}, "n_early_size: the file says `2`, expected a whole number >= 0"),
        ({"n_early_size": 10**5000}, "n_early_size: the file says `int`, expected a whole number >= 0"),
        ({"n_early_every": 3}, "channels of the flows: the file says [8, 8, 8, 6, 6, 6], its tensors say [8, 8, 6"),
        ({"hop_length": 2048}, "hop_length 2048 is larger than win_length 1024"),
        ({"hop_length": None}, "hop_length: the file says `NoneType`"),
        ({"alternate_halves": 1}, "alternate_halves: the file says 1, expected true or false"),
        ({"conditioning": "group"}, "conditioning: the file says `group`, its tensors say `sample`"),
        ({"win_length": [1]}, "win_length: the file says [1], its tensors say 1024"),
    ],
)  # fmt: skip
def test_configurations_that_contradict_the_tensors(known: dict[str, object], message: str) -> None:
    class Shaped:
        dtype = torch.float32

        def __init__(self, shape: list[int]) -> None:
            self.shape = tuple(shape)

    tensors = {key: Shaped(shape) for key, shape in golden.spec("waveglow_tiny").items()}
    assert sizes.complete({}, tensors) == golden.config("waveglow_tiny")
    with pytest.raises(CheckpointError) as caught:
        sizes.complete(known, tensors)
    assert message in str(caught.value)


def test_sizes_without_end() -> None:
    with pytest.raises(CheckpointError, match="expected 1 to 256"):
        sizes.infer({f"WN.{k}.in_layers.0.bias": (1,) for k in range(1000)})
    with pytest.raises(CheckpointError, match="1 to 64"):
        sizes.infer({f"WN.0.in_layers.{i}.bias": (1,) for i in range(1000)})
