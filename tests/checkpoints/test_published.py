"""Every spelling of the same weights gives the published audio."""

from __future__ import annotations

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, read
from tests import golden
from tests.checkpoints.conftest import Save, State, split_layers


def folded(state: State) -> State:
    plain = {}
    for key, value in state.items():
        if key.endswith(".weight_v"):
            plain[key.removesuffix("_v")] = torch._weight_norm(value, state[key[:-1] + "g"], 0)
        elif not key.endswith(".weight_g"):
            plain[key] = value
    return plain


def parametrized(state: State) -> State:
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {
        key.rpartition(".")[0] + "." + names.get(key.rpartition(".")[2], key.rpartition(".")[2]): value
        for key, value in state.items()
    }


SPELLINGS = {
    "published": lambda state: state,
    "parametrizations": parametrized,
    "folded": folded,
    "layers apart": lambda state: split_layers(state, 4),
    "layers apart, parametrizations": lambda state: parametrized(split_layers(state, 4)),
    "layers apart, folded": lambda state: folded(split_layers(state, 4)),
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "module.1.": lambda state: {f"module.1.{key}": value for key, value in state.items()},
    "model.waveglow.": lambda state: {f"model.waveglow.{key}": value for key, value in state.items()},
    "float64": lambda state: {key: value.double() for key, value in state.items()},
    "not contiguous": lambda state: {key: value.mT.contiguous().mT if value.dim() > 1 else value
                                     for key, value in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, tiny: State, save_torch: Save) -> None:
    model = fastflow.load(save_torch(SPELLINGS[spelling](tiny)))
    assert model.config == golden.config("waveglow_tiny")
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


@pytest.mark.parametrize("spelling", ["parametrizations", "layers apart", "module.1."])
def test_a_spelling_that_is_only_a_name_keeps_every_bit(spelling: str, tiny: State, save_torch: Save) -> None:
    loaded = read(save_torch(SPELLINGS[spelling](tiny))).state_dict
    assert loaded.keys() == tiny.keys()
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())


def test_the_old_case_without_a_class_lacks_only_its_alternating_halves(save_torch: Save) -> None:
    """Nothing in a state dict tells glow_old.py's from glow.py's; its tensors are read alike."""
    checkpoint = read(save_torch(golden.make_state_dict("waveglow_old")))
    assert checkpoint.config == golden.config("waveglow_old") | {"alternate_halves": False, "n_early_every": 4}
    model = fastflow.models.WaveGlow(**golden.config("waveglow_old"))
    model.load_state_dict(checkpoint.state_dict)
    assert golden.audio_error(model, "waveglow_old") <= 1e-4


def test_channels_of_zeros(tiny: State, save_torch: Save) -> None:
    plain = folded(tiny)
    plain["WN.1.start.weight"][3] = 0
    model = fastflow.load(save_torch(plain))
    assert not model.WN[1].start.folded_weight()[3].any()
    assert model.WN[1].start.folded_weight()[4].all()
    assert torch.isfinite(model.infer(torch.zeros(1, 8, 4))).all()
    tiny["WN.1.start.weight_v"][3] = 0
    with pytest.raises(
        CheckpointError, match=r"channels of zeros:\n  `WN\.1\.start\.weight_v` \[16, 4, 1\]: 1 channels"
    ):
        fastflow.load(save_torch(tiny))


def test_half_precision_is_widened_exactly(tiny: State, save_torch: Save) -> None:
    plain = {key: value.half() for key, value in folded(tiny).items()}
    loaded = read(save_torch(plain)).state_dict
    assert loaded["WN.0.start.weight_v"].dtype == torch.float32
    weight = torch._weight_norm(loaded["WN.0.start.weight_v"], loaded["WN.0.start.weight_g"], 0)
    torch.testing.assert_close(weight, plain["WN.0.start.weight"].float(), rtol=1e-6, atol=0)


def test_the_same_tensor_in_two_spellings(tiny: State, save_torch: Save) -> None:
    weight = torch._weight_norm(tiny["WN.0.start.weight_v"], tiny["WN.0.start.weight_g"], 0)
    for extra in ("weight", "parametrizations.weight.original1"):
        with pytest.raises(CheckpointError, match=rf"unexpected: `WN\.0\.start\.{extra}` \[16, 4, 1\]"):
            fastflow.load(save_torch(tiny | {f"WN.0.start.{extra}": weight}))
    with pytest.raises(CheckpointError, match=r"unexpected: `WN\.0\.cond_layers\.0\.bias` \[32\]"):
        fastflow.load(save_torch(tiny | {"WN.0.cond_layers.0.bias": torch.zeros(32)}))
    with pytest.raises(CheckpointError, match=r"unexpected: `module\.upsample\.bias` \[8\]"):
        fastflow.load(save_torch(tiny | {"module.upsample.bias": torch.zeros(8)}))


def test_layers_that_do_not_fit_together(tiny: State, save_torch: Save) -> None:
    split = split_layers(tiny, 4)
    split["WN.2.res_layers.1.weight_v"] = torch.ones(16, 5, 1)
    del split["WN.3.cond_layers.2.bias"]
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(split))
    for line in (
        "unexpected: `WN.2.res_layers.1.weight_v` [16, 5, 1]",
        "missing: `WN.2.res_skip_layers.1.weight_v` [32, 16, 1]",
        "missing: `WN.3.cond_layer.bias` [128]",
        "unexpected: `WN.3.cond_layers.3.bias` [32]",
    ):
        assert line in str(caught.value)
