from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, read
from tests import golden
from tests.checkpoints.conftest import Save, State


def nemo_keys(state: State) -> State:
    renamed = {f"waveglow.{key.replace('WN.', 'wavenet.')}": value for key, value in state.items()}
    return renamed | {
        "waveglow.convinv.0.inv_conv.weight": torch.full((8, 8, 1), 9.0),
        "audio_to_melspec_precessor.featurizer.window": torch.ones(1024),
        "audio_to_melspec_precessor.featurizer.fb": torch.ones(1, 80, 513),
    }


def test_state_dict(tiny: State, save_torch: Save) -> None:
    path = save_torch(nemo_keys(tiny))
    assert read(path).format == "NeMo state dict"
    loaded = read(path).state_dict
    assert loaded.keys() == tiny.keys()
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())
    assert golden.audio_error(fastflow.load(path), "waveglow_tiny") <= 1e-4
    assert golden.audio_error(fastflow.load(save_torch({"state_dict": nemo_keys(tiny)})), "waveglow_tiny") <= 1e-4


def archive(path: Path, weights: Path | bytes, mode: str = "w", name: str = "./model_weights.ckpt") -> Path:
    data = weights if isinstance(weights, bytes) else weights.read_bytes()
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member_name, content in (("./model_config.yaml", b"target: nemo\n"), (name, data)):
            member = tarfile.TarInfo(member_name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archive(mode: str, tiny: State, save_torch: Save, tmp_path: Path) -> None:
    path = archive(tmp_path / "tts.nemo", save_torch(nemo_keys(tiny)), mode)
    assert golden.audio_error(fastflow.load(path), "waveglow_tiny") <= 1e-4


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives_that_are_wrong(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "tts.nemo"
    outside = tmp_path / "outside"
    with pytest.raises(CheckpointError, match=r"without model_weights\.ckpt"):
        fastflow.load(archive(path, b"x", mode, name=f"../{outside.name}"))
    assert not outside.exists()
    with pytest.raises(CheckpointError, match="damaged"):
        fastflow.load(archive(path, b"\x80\x02", mode))
    whole = archive(path, b"x" * 4000, mode).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        fastflow.load(path)


def test_a_compressed_bomb(tmp_path: Path) -> None:
    path = archive(tmp_path / "tts.nemo", bytes(20_000_000), "w:gz")
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="unpacks to more than 20 times its size"):
        fastflow.load(path)
