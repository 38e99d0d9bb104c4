from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import fastflow
from fastflow.checkpoints import CheckpointError, save
from tests import golden
from tests.checkpoints.conftest import State


@pytest.fixture
def model(tiny: State) -> fastflow.models.WaveGlow:
    model = fastflow.models.WaveGlow(**golden.config("waveglow_tiny"))
    model.load_state_dict(tiny)
    return model


def same_bits(first: fastflow.models.WaveGlow, second: fastflow.models.WaveGlow) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_round_trip_keeps_every_bit(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    save(model, tmp_path / "m.safetensors")
    loaded = fastflow.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    assert same_bits(loaded, model)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]  # no temporary file stays
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"]) == model.config
        assert file.metadata()["fastflow_format"] == "1"


def test_what_no_tensor_shows_is_in_the_file(tmp_path: Path) -> None:
    wn = {"n_layers": 1, "n_channels": 4, "kernel_size": 3}
    for conditioning in ("sample", "group"):
        model = fastflow.models.WaveGlow(
            10, 3, 16, 7, 4, wn, hop_length=64, win_length=512, conditioning=conditioning, alternate_halves=True
        )
        save(model, tmp_path / "m.safetensors", overwrite=True)
        assert fastflow.load(tmp_path / "m.safetensors").config == model.config


def test_dtypes(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save(model, full)
    save(model, half, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert {p.dtype for p in fastflow.load(half).parameters()} == {torch.float32}
    assert {p.dtype for p in fastflow.load(half, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"`dtype` must be float64, .*; got torch\.int8"):
        save(model, half, dtype=torch.int8, overwrite=True)


def test_after_remove_weightnorm(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    save(model.remove_weightnorm(), tmp_path / "m.safetensors")
    assert golden.audio_error(fastflow.load(tmp_path / "m.safetensors"), "waveglow_tiny") <= 1e-4


def test_a_safetensors_file_of_somebody_else(tiny: State, tmp_path: Path) -> None:
    safetensors.torch.save_file({f"module.{key}": value for key, value in tiny.items()}, tmp_path / "m.bin")
    model = fastflow.load(tmp_path / "m.bin")
    assert golden.audio_error(model, "waveglow_tiny") <= 1e-4


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"fastflow_format": "2"}, "its format version is `2`; this fastflow reads version 1"),
        ({"model": "FloWaveNet"}, "a model called `FloWaveNet`; its tensors are those of `WaveGlow`"),
        ({"config": "{"}, "its configuration is not JSON"),
        ({"config": "[" * 100_000}, "its configuration is not JSON"),
        ({"config": "[1]"}, "its configuration is not a JSON object"),
        ({"config": '{"n_flows": 7}'}, "n_flows: the file says 7, its tensors say 6"),
        ({"config": '{"hop_length": 100}'}, "`hop_length` must be a positive multiple of n_group"),
    ],
)
def test_metadata_that_is_wrong(metadata: dict[str, str], message: str, tiny: State, tmp_path: Path) -> None:
    right = {"fastflow_format": "1", "model": "WaveGlow", "config": json.dumps(golden.config("waveglow_tiny"))}
    safetensors.torch.save_file(tiny, tmp_path / "m.safetensors", metadata=right | metadata)
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(tmp_path / "m.safetensors")
    assert message in str(caught.value)
    assert "m.safetensors" in str(caught.value)


def test_integers_as_weights(tiny: State, tmp_path: Path) -> None:
    tiny["upsample.bias"] = tiny["upsample.bias"].to(torch.int64)
    safetensors.torch.save_file(tiny, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"not floating-point: `upsample\.bias` \[8\]"):
        fastflow.load(tmp_path / "m.safetensors")


def test_cut_off_and_damaged(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(model, path)
    data = path.read_bytes()
    for length in (1, 7, 8, 9, 100, 5000, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="cannot load"):
            fastflow.load(path)


def test_output_paths(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match=r"m\.safetensors: it already exists \(overwrite=True replaces it\)"):
        save(model, path)
    assert path.read_text() == "precious"
    save(model, path, overwrite=True)
    assert same_bits(fastflow.load(path), model)
    with pytest.raises(CheckpointError, match="it is a directory"):
        save(model, tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match=r"the directory .* does not exist"):
        save(model, tmp_path / "none" / "m.safetensors")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(model, tmp_path / ("x" * 300))
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
def test_a_full_disk_leaves_nothing(
    model: fastflow.models.WaveGlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "m.safetensors"
    path.write_text("precious")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        save(model, path, overwrite=True)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_follows_the_umask(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(model, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o640


def test_weights_that_are_not_finite_are_not_written(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    with torch.no_grad():
        model.upsample.bias[2] = 1e5  # more than float16 holds
    with pytest.raises(CheckpointError, match=r"`upsample\.bias` \[8\]: 1 of 8 in torch\.float16"):
        save(model, tmp_path / "m.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_the_same_model_gives_the_same_bytes(model: fastflow.models.WaveGlow, tmp_path: Path) -> None:
    for i in range(8):
        save(model, tmp_path / f"{i}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
