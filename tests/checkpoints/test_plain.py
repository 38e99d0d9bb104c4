from __future__ import annotations

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError
from tests import golden
from tests.checkpoints.conftest import Save, State


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "waveglow"])
def test_state_dict_inside(wrapper: str, tiny: State, save_torch: Save) -> None:
    model = fastflow.load(save_torch({"iteration": 3, wrapper: tiny}))
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


def test_parameters_and_metadata(tiny: State, save_torch: Save) -> None:
    """As `model.state_dict(keep_vars=True)` gives it: parameters in an OrderedDict with a `_metadata`
    attribute."""
    first = fastflow.load(save_torch(tiny))
    second = fastflow.load(save_torch(first.state_dict(keep_vars=True)))
    assert golden.audio_error(second, "waveglow_tiny") <= 1e-4


def test_another_architecture(save_torch: Save) -> None:
    tacotron = {
        "embedding.weight": torch.zeros(148, 512),
        "encoder.convolutions.0.0.conv.weight": torch.zeros(512, 512, 5),
        "decoder.attention_rnn.weight_ih": torch.zeros(4096, 768),
    }
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch({"state_dict": tacotron}))
    assert "another architecture: none of its 3 tensors is called WN.k or convinv.k" in str(caught.value)
    assert "`embedding.weight` [148, 512]" in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "it holds a list"),
        ("text", "it holds a str"),
        (torch.zeros(3), "it holds a StoredTensor"),
        ({}, "it holds a dict with the keys"),
        ({"lr": 1e-4, 7: {}}, "a dict with the keys `lr`, `int`"),
    ],
)
def test_neither_a_model_nor_a_state_dict(saved: object, message: str, save_torch: Save) -> None:
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(saved))
    assert message in str(caught.value)
    assert "expected a model or a state dict of named tensors" in str(caught.value)
