"""fastflow.load, save and convert as a caller sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastflow
from fastflow import checkpoints
from fastflow.checkpoints import CheckpointError, convert, load, save
from tests import golden
from tests.checkpoints.conftest import Save, State

FILES = sorted(golden.GOLDEN.glob("*.pt"))


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_convert_keeps_every_bit(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    convert(source, target)
    first, second = load(source), load(target)
    assert first.config == second.config
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(CheckpointError, match="already exists"):
        convert(source, target)
    convert(source, target, overwrite=True)


def test_convert_keeps_the_files_dtype_unless_told(tiny: State, save_torch: Save, tmp_path: Path) -> None:
    source = save_torch({key: value.half() for key, value in tiny.items()})
    for dtype, expected in ((None, torch.float16), (torch.float32, torch.float32)):
        convert(source, tmp_path / "m.safetensors", dtype=dtype, overwrite=True)
        stored = checkpoints.read(tmp_path / "m.safetensors").state_dict
        assert {value.dtype for value in stored.values()} == {expected}


def test_a_refused_file_converts_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        convert(tmp_path / "evil.pt", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_of_the_model(dtype: torch.dtype | None) -> None:
    model = load(FILES[-1], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype or torch.float32}
    assert not model.training


def test_float64_weights_are_not_rounded_on_the_way(tiny: State, save_torch: Save) -> None:
    exact = {key: value.double() + 1e-12 for key, value in tiny.items()}
    loaded = load(save_torch(exact), dtype=torch.float64).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in exact.items())


def test_weights_that_do_not_fit_the_dtype(tiny: State, save_torch: Save) -> None:
    tiny["upsample.bias"][0] = 1e5
    path = save_torch(tiny)
    load(path, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"`upsample\.bias` \[8\]: 1 of 8 in torch\.float16"):
        load(path, dtype=torch.float16)


def test_loading_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(FILES[0])
    assert torch.equal(torch.rand(3), expected)


def test_bad_device_and_dtype() -> None:
    for device in ("gpu", "cuda:99", "meta0"):
        with pytest.raises(ValueError, match=f"`device` {device} cannot be used"):
            load(FILES[0], device=device)
    with pytest.raises(ValueError, match=r"`dtype` must be float64, .*; got torch\.int32"):
        load(FILES[0], dtype=torch.int32)


def test_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match=r"no file waveglow-tiny.*\(bundled: none\)"):
        load("waveglow-tiny")
    save(load(FILES[-1]), tmp_path / "waveglow-tiny.safetensors")
    assert checkpoints.bundled() == ["waveglow-tiny"]
    assert golden.audio_error(load("waveglow-tiny"), "waveglow_tiny") <= 1e-4
    with pytest.raises(CheckpointError, match=r"no file waveglow-tinny.*\(bundled: waveglow-tiny\)"):
        load("waveglow-tinny")
    with pytest.raises(CheckpointError, match="no file"):
        load(f"../{tmp_path.name}/waveglow-tiny")


def test_a_file_goes_before_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waveglow-small").write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is empty"):
        load("waveglow-small")


def test_published_keys_in_both_directions(tiny: State) -> None:
    model = load(golden.GOLDEN / "waveglow_tiny_nvidia.pt")
    assert model.state_dict().keys() == tiny.keys()
    fastflow.models.WaveGlow(**model.config).load_state_dict(tiny, strict=True)
