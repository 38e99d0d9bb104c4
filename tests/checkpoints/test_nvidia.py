from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import fastflow
from fastflow.checkpoints import CheckpointError, read
from tests import golden
from tests.checkpoints.conftest import Save, split_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning"),
]

MODULES = {
    "waveglow_tiny_nvidia.pt": "waveglow_tiny",
    "waveglow_tiny_nvidia_legacy.pt": "waveglow_tiny",
    "waveglow_old_nvidia.pt": "waveglow_old",
}


@pytest.mark.parametrize("name", MODULES)
def test_a_pickled_module_gives_the_published_audio(name: str) -> None:
    model = fastflow.load(golden.GOLDEN / name)
    assert not model.training
    assert golden.audio_error(model, MODULES[name]) <= 1e-4
    assert golden.audio_error(copy.deepcopy(model), MODULES[name]) <= 1e-4


@pytest.mark.parametrize("name", MODULES)
def test_configuration_and_weights_are_exactly_the_files(name: str) -> None:
    case = MODULES[name]
    checkpoint = read(golden.GOLDEN / name)
    assert checkpoint.config == golden.config(case)
    expected = golden.make_state_dict(case)
    for flow in range(6):
        for leaf in ("bias", "weight_g", "weight_v"):
            parts = [expected.pop(f"WN.{flow}.cond_layers.{i}.{leaf}", None) for i in range(4)]
            if parts[0] is not None:
                expected[f"WN.{flow}.cond_layer.{leaf}"] = torch.cat([p for p in parts if p is not None])
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in expected.items())


def test_no_module_of_the_file_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    trap = types.ModuleType("glow")
    monkeypatch.setitem(sys.modules, "glow", trap)

    def touched(name: str) -> None:
        raise AssertionError(f"glow.{name} was looked up")

    trap.__getattr__ = touched  # type: ignore[method-assign]
    fastflow.load(golden.GOLDEN / "waveglow_tiny_nvidia.pt")


# Classes as in the first published files: separate res and skip layers, one cond layer per layer. Only their
# attributes matter.


class WN(nn.Module):
    def __init__(self, n_half: int, cond: int, layers: int, width: int) -> None:
        super().__init__()

        def normed(rows: int, columns: int, taps: int = 1, dilation: int = 1) -> nn.Module:
            return nn.utils.weight_norm(nn.Conv1d(rows, columns, taps, dilation=dilation))

        self.n_layers, self.n_channels = layers, width
        self.in_layers = nn.ModuleList(normed(width, 2 * width, 3, 2**i) for i in range(layers))
        self.res_layers = nn.ModuleList(normed(width, width) for _ in range(layers - 1))
        self.skip_layers = nn.ModuleList(normed(width, width) for _ in range(layers))
        self.cond_layers = nn.ModuleList(normed(cond, 2 * width) for _ in range(layers))
        self.start = normed(n_half, width)
        self.end = nn.Conv1d(width, 2 * n_half, 1)


class Invertible1x1Conv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.W_inverse = torch.zeros(channels, channels, 1)  # a stale cache, which must not be used


class WaveGlow(nn.Module):
    def __init__(self, n_mel: int = 8, flows: int = 6, group: int = 8, layers: int = 4, width: int = 16) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose1d(n_mel, n_mel, 1024, stride=256)
        self.n_flows, self.n_group, self.n_early_every, self.n_early_size = flows, group, 2, 2
        self.WN, self.convinv = nn.ModuleList(), nn.ModuleList()
        for k in range(flows):
            channels = group - 2 * (k // 2)
            self.convinv.append(Invertible1x1Conv(channels))
            self.WN.append(WN(channels // 2, n_mel * group, layers, width))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> WaveGlow:
    """A first-generation module with the weights of `waveglow_tiny`, pickled as `glow.WaveGlow`."""
    name = "glow"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    for cls in (WN, Invertible1x1Conv, WaveGlow):
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", name)
    model = WaveGlow()
    model.load_state_dict(split_layers(golden.make_state_dict("waveglow_tiny"), layers=4))
    return model


def test_separate_res_skip_and_cond_layers(published: WaveGlow, save_torch: Save) -> None:
    # What `weight_norm` keeps beside g and v is a stale product of them; make it visibly wrong.
    for wn in published.WN:
        wn.start.__dict__["weight"] = torch.full((16, 4, 1), 7.0)
    model = fastflow.load(save_torch({"model": published, "iteration": 580000, "learning_rate": 1e-4}))
    assert model.config == golden.config("waveglow_tiny")
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


def test_attributes_that_old_pickles_lack(published: WaveGlow, save_torch: Save) -> None:
    for module in published.modules():
        for name in ("padding_mode", "_non_persistent_buffers_set", "_forward_hooks", "_state_dict_hooks"):
            module.__dict__.pop(name, None)
    for name in ("n_flows", "n_group", "n_early_every", "n_early_size"):
        delattr(published, name)
    model = fastflow.load(save_torch({"model": published}))
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


def test_module_alone_and_in_data_parallel(published: WaveGlow, save_torch: Save) -> None:
    assert golden.audio_error(fastflow.load(save_torch(published)), "waveglow_tiny") <= 1e-4
    wrapped = nn.DataParallel(published)
    assert golden.audio_error(fastflow.load(save_torch({"model": wrapped})), "waveglow_tiny") <= 1e-4


def test_module_without_weight_norm(published: WaveGlow, save_torch: Save) -> None:
    for module in published.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    assert golden.audio_error(fastflow.load(save_torch(published)), "waveglow_tiny") <= 1e-4


def test_hop_is_the_upsamplers_stride(published: WaveGlow, save_torch: Save) -> None:
    published.upsample.stride = (128,)
    assert fastflow.load(save_torch(published)).hop_length == 128


def test_attributes_that_contradict_the_tensors(published: WaveGlow, save_torch: Save) -> None:
    published.n_flows, published.n_early_size = 10**9, -2
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(published))
    assert "n_flows: the file says 1000000000, its tensors say 6" in str(caught.value)
    assert "n_early_size: the file says -2, expected a whole number >= 0" in str(caught.value)


def test_another_dilation_is_refused(published: WaveGlow, save_torch: Save) -> None:
    published.WN[2].in_layers[1].dilation = (3,)
    with pytest.raises(CheckpointError, match=r"layer 1 of `WN\.2` is not dilated by 2"):
        fastflow.load(save_torch(published))


def test_modules_that_hold_themselves(published: WaveGlow, save_torch: Save) -> None:
    published.WN[0]._modules["again"] = published.WN
    with pytest.raises(CheckpointError, match="nested deeper than 16"):
        fastflow.load(save_torch(published))


def test_exponentially_shared_modules(published: WaveGlow, save_torch: Save) -> None:
    inner: nn.Module = nn.ModuleList()
    for _ in range(13):
        shared = nn.ModuleList()
        shared._modules = {str(i): inner for i in range(9)}  # 9^13 paths to the innermost
        inner = shared
    published._modules["bomb"] = inner
    with pytest.raises(CheckpointError, match="more than 50000"):
        fastflow.load(save_torch(published))


def test_another_module(save_torch: Save) -> None:
    with pytest.raises(CheckpointError, match=r"class `torch\.nn\.modules\.conv\.Conv1d`, which is not a WaveGlow"):
        fastflow.load(save_torch({"model": nn.Conv1d(1, 1, 1)}))


def test_a_module_of_an_unknown_class(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"refers to `torch\.nn\.modules\.linear\.Linear`"):
        fastflow.load(tmp_path / "m.pt")
