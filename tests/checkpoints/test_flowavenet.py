"""FloWaveNet's checkpoints: {"state_dict": ..., "optimizer": ..., "scheduler": ..., ...}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, convert, flowavenet, read, save
from fastflow.models import FloWaveNet
from tests import golden
from tests.checkpoints.conftest import Save, State

SMALL = {"in_channel": 1, "cin_channel": 4, "n_block": 3, "n_flow": 1, "n_layer": 2, "block_per_split": 2}
SIZES: list[dict[str, Any]] = [
    SMALL,
    SMALL | {"affine": False},
    SMALL | {"n_flow": 3, "n_layer": 1, "block_per_split": 1},
    SMALL | {"in_channel": 2, "cin_channel": 3, "n_block": 2, "filter_size": 6},
    SMALL | {"block_per_split": 8},
]


def small(**sizes: Any) -> FloWaveNet:
    torch.manual_seed(0)
    return FloWaveNet(**(SMALL | {"filter_size": 8, "pretrained": True} | sizes)).eval()


@pytest.fixture
def weights() -> State:
    return dict(small().state_dict())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(path)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_gives_the_published_audio(prefix: str, save_torch: Save) -> None:
    state = {prefix + key: value for key, value in golden.make_state_dict("flowavenet_tiny").items()}
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=200_000, gamma=0.5)
    optimizer.step()
    path = save_torch(
        {
            "state_dict": state,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "global_step": 1,
            "global_epoch": 1,
        }
    )
    model = fastflow.load(path)
    assert isinstance(model, FloWaveNet) and not model.training
    assert model.config == golden.config("flowavenet_tiny") | {"filter_size": 256}
    arrays = golden.load_case("flowavenet_tiny")
    with torch.no_grad():
        audio = model.reverse(arrays["z"], arrays["mel"])
    expected = arrays["audio_out"].double()
    assert (audio.double() - expected).square().mean().sqrt() <= 1e-4 * expected.square().mean().sqrt()


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_come_back(sizes: dict[str, Any], save_torch: Save, tmp_path: Path) -> None:
    model = small(**sizes)
    seen = model.config | {"block_per_split": min(model.block_per_split, model.n_block)}  # beyond, none is seen
    assert read(save_torch(model.state_dict())).config == seen
    save(model, tmp_path / "m.safetensors")
    assert fastflow.load(tmp_path / "m.safetensors").config == model.config


def test_the_published_size() -> None:
    shapes = {key: tuple(shape) for key, shape in golden.spec("flowavenet_default").items()}
    assert flowavenet.infer(shapes) == golden.config("flowavenet_default") | {"filter_size": 256}


def test_every_spelling_of_weight_norm(weights: State, save_torch: Save) -> None:
    expected = small()
    mel, z = torch.randn(1, 4, 2), torch.randn(1, 1, 512)
    g, v = "parametrizations.weight.original0", "parametrizations.weight.original1"
    renamed = {key.replace("weight_g", g).replace("weight_v", v): value for key, value in weights.items()}
    plain = small()
    plain.remove_weight_norm()
    for state in (renamed, plain.state_dict()):
        loaded = fastflow.load(save_torch({"state_dict": state}))
        torch.testing.assert_close(loaded.infer(mel, z=z), expected.infer(mel, z=z))


def test_convert_keeps_every_bit(weights: State, save_torch: Save, tmp_path: Path) -> None:
    convert(save_torch({"state_dict": weights}), tmp_path / "m.safetensors")
    model = fastflow.load(tmp_path / "m.safetensors")
    assert isinstance(model, FloWaveNet)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    convert(tmp_path / "m.safetensors", tmp_path / "half.safetensors", dtype=torch.float16)
    assert {value.dtype for value in read(tmp_path / "half.safetensors").state_dict.values()} == {torch.float16}


@pytest.mark.parametrize(
    "wrong",
    [
        "blocks.0.flows.0.actnorm.loc",
        "blocks.1.flows.0.coupling.net.res_blocks.0.gate_conv_c.weight_v",
        "blocks.1.prior.final_conv.3.scale",
        "blocks.2.flows.0.coupling.net.final_conv.3.conv.weight",
        "upsample_conv.2.weight_v",
    ],
)
def test_one_wrong_tensor_is_found_wrong_and_not_the_others(wrong: str, weights: State, save_torch: Save) -> None:
    weights[wrong] = torch.ones([size + 2 for size in weights[wrong].shape])
    message = refusal(save_torch(weights))
    lines = [line for line in message.splitlines() if line.startswith(("  missing", "  unexp", "  misshapen"))]
    assert len(lines) == 1 and f"misshapen: `{wrong}`" in lines[0], message


def test_missing_and_unexpected_tensors(weights: State, save_torch: Save) -> None:
    del weights["blocks.2.flows.0.actnorm.scale"]
    weights["blocks.2.flows.0.shift"] = torch.zeros(4)
    message = refusal(save_torch(weights))
    for line in (
        "its tensors are not those of a FloWaveNet",
        "missing: `blocks.2.flows.0.actnorm.scale` [1, 4, 1]",
        "unexpected: `blocks.2.flows.0.shift` [4]",
        "n_block 3",
    ):
        assert line in message, message


def test_a_small_file_cannot_ask_for_a_large_model(weights: State, save_torch: Save) -> None:
    names = {f"blocks.{b}.flows.{f}.actnorm.loc": torch.ones(1) for b in range(3) for f in range(500)}
    assert "3 blocks of 500 flows" in refusal(save_torch(weights | names))
    names = {f"blocks.{b}.flows.0.actnorm.loc": torch.ones(1) for b in range(40)}
    assert "40 blocks" in refusal(save_torch(weights | names))
    far = {"blocks.12345.flows.0.actnorm.loc": torch.ones(1, 2, 1)}
    assert "unexpected: `blocks.12345.flows.0.actnorm.loc`" in refusal(save_torch(weights | far))
    wide = {key: torch.zeros(0, 2**62, 0) for key in weights if "_conv_c.weight_v" in key}
    assert "overflow" in refusal(save_torch(weights | wide))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_flow": 2}, "n_flow: the file says 2, its tensors say 1"),
        ({"affine": 1}, "affine: the file says 1, its tensors say True"),
        ({"block_per_split": 3}, "block_per_split: the file says 3, its tensors say 2"),
        ({"block_per_split": 0}, "block_per_split: the file says 0, expected a whole number >= 1"),
        ({"cin_channel": "4"}, "cin_channel: the file says `4`, its tensors say 4"),
    ],
)
def test_configurations_that_contradict_the_tensors(
    config: dict[str, object], message: str, weights: State, tmp_path: Path
) -> None:
    import json

    import safetensors.torch

    metadata = {"fastflow_format": "1", "model": "FloWaveNet", "config": json.dumps(config)}
    safetensors.torch.save_file(weights, tmp_path / "m.safetensors", metadata=metadata)
    assert message in refusal(tmp_path / "m.safetensors")


def test_weights_that_are_not_finite(weights: State, save_torch: Save) -> None:
    weights["blocks.0.flows.0.actnorm.loc"][0, 0] = float("nan")
    assert "`blocks.0.flows.0.actnorm.loc` [1, 2, 1]: 1 of 2" in refusal(save_torch(weights))


def test_another_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`model` must be one of FloWaveNet, SqueezeWave, WaveGlow; got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "m.safetensors")  # type: ignore[arg-type]
