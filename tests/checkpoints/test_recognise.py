from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError
from tests.checkpoints.conftest import Save, State


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"Dear reader,\nthis is no checkpoint.\n", "it is no checkpoint: it starts with b'Dear reader,\\nth"),
        (b"{\"json\": true}", "it is no checkpoint"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "it is no checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "it is no checkpoint"),
        (b"PK\x03\x04" + b"\x00" * 40, "its zip directory is damaged or cut off"),
        (b"\x80\x02K\x05.", "it is a pickle, but torch.save did not write it"),
        (b"\x1f\x8b\x08\x00", "it is an archive that is damaged or cut off"),
        (b"\x00" * 10_000, "it is no checkpoint"),
        (b"\xff" * 10_000, "it is no checkpoint"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoints(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "waveglow.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a directory"):
        fastflow.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        fastflow.load(tmp_path / "pipe")
    for missing in (tmp_path / "none.pt", "x" * 5000, "null\0byte"):
        with pytest.raises(CheckpointError, match="there is no file"):
            fastflow.load(missing)


def test_the_name_of_a_file_says_nothing(tiny: State, save_torch: Save) -> None:
    for name in ("model.safetensors", "model.nemo", "model.txt", "model"):
        fastflow.load(save_torch(tiny, name))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value: float, tiny: State, save_torch: Save) -> None:
    tiny["WN.4.end.weight"][1, 2] = value
    tiny["upsample.bias"][:3] = value
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(tiny))
    assert "`WN.4.end.weight` [4, 16, 1]: 1 of 64 in torch.float32" in str(caught.value)
    assert "`upsample.bias` [8]: 3 of 8 in torch.float32" in str(caught.value)


def test_finite_weights_with_an_infinite_sum(tiny: State, save_torch: Save) -> None:
    tiny["upsample.bias"][:] = 1e38
    fastflow.load(save_torch(tiny))


def test_file_names_and_keys_cannot_forge_a_message(tiny: State, save_torch: Save) -> None:
    key = "evil\n\x1b[2J" + "x" * 1000
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(save_torch(tiny | {key: torch.zeros(1)}))
    assert "unexpected: `evil\\n\\x1b[2J" in str(caught.value)
    assert "x" * 200 not in str(caught.value)
