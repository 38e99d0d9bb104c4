"""`fastflow convert`: a checkpoint in, the same model as safetensors out; refusals in plain words."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

import fastflow

Run = Callable[..., Result]


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_converted_model_computes_the_same(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = run("convert", checkpoint, tmp_path / "out.safetensors")
    assert result.exit_code == 0, result.output
    assert "out.safetensors: 3.3 MB" in result.stdout
    one, two = fastflow.load(checkpoint), fastflow.load(tmp_path / "out.safetensors")
    assert one.config == two.config
    for (name, a), (other, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_dtype_halves_the_file(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert run("convert", checkpoint, full).exit_code == 0
    assert run("convert", checkpoint, half, "--dtype", "float16").exit_code == 0
    assert half.stat().st_size < 0.7 * full.stat().st_size


def test_existing_output(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    result = run("convert", checkpoint, out)
    assert result.exit_code == 2
    assert f"OUT {out} exists (--overwrite replaces it)" in result.stderr
    assert out.read_text() == "precious"
    assert run("convert", checkpoint, out, "--overwrite").exit_code == 0
    fastflow.load(out)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.pt", "OUT must end in .safetensors; got "),
        ("dir.safetensors", "dir.safetensors is a directory"),
        ("no/such/out.safetensors", "does not exist"),
    ],
)
def test_wrong_outputs(run: Run, checkpoint: Path, tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "dir.safetensors").mkdir()
    result = run("convert", checkpoint, tmp_path / output)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_malicious_pickle_is_refused_by_name_and_not_run(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "was-executed"
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Evil(target)}, protocol=2))
    torch.save({"model": Evil(target)}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        result = run("convert", tmp_path / name, tmp_path / "out.safetensors")
        assert result.exit_code == 1
        assert "mkdir" in result.stderr
        assert name in result.stderr
        assert not target.exists()
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [None, b"", b"hello", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint(run: Run, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "in.pt").write_bytes(content)
    result = run("convert", tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "in.pt" in result.stderr
    assert list(tmp_path.glob("*.safetensors")) == []


def test_keys_that_do_not_fit_are_listed_at_once(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    state = fastflow.load(checkpoint).state_dict()
    names = list(state)
    state["surplus.one"] = torch.zeros(3)
    state["surplus.two"] = torch.zeros(3)
    del state[names[-1]]
    torch.save(state, tmp_path / "in.pt")
    result = run("convert", tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert result.exit_code == 1
    for name in ("surplus.one", "surplus.two"):
        assert name in result.stderr
