"""Two processes, each with the whole model (DDP) or a share of it (FSDP2), train what one process does."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastflow
from fastflow.audio import write_audio
from fastflow.train import TrainingError

from .conftest import tone
from .processes import BACKPROPS, MODELS, SETTINGS, make, run, run_half
from .test_images import pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, then two, have trained: NAME-one, NAME-ddp, NAME-fsdp, and what `processes.py` says."""
    path = tmp_path_factory.mktemp("parallel")
    (path / "speech").mkdir()
    write_audio(path / "speech" / "a.wav", tone(1.0, 110.0), 22050)
    np.save(path / "images.npy", pictures(16, 8, 8))
    for name in MODELS:
        run(name, path, f"{name}-one")
    run_half(path, "half-one.safetensors", "fsdp")  # which is nothing else where there is one process
    run("WaveGlow", path, "begun-one", steps=2)
    for suffix in (".safetensors", ".json", ".state.pt"):
        shutil.copy(path / f"begun-one{suffix}", path / f"resumed{suffix}")
    run("WaveGlow", path, "begun-one", resume=True)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(fastflow.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    script = Path(__file__).with_name("processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", port, str(path)],
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return path


def compare(folder: Path, name: str, expected: str, *, rtol: float = 1e-4) -> None:
    """The same progress, weights and state, but for the order of sums."""
    facts = [json.loads((folder / f"{n}.json").read_text()) for n in (name, expected)]
    progress = [
        {k: v for k, v in f["progress"].items() if k not in ("seconds", "saves") and v is not None} for f in facts
    ]
    assert progress[0] == pytest.approx(progress[1], rel=rtol)
    weights = [load_file(folder / f"{n}.safetensors") for n in (name, expected)]
    states = [torch.load(folder / f"{n}.state.pt", weights_only=True) for n in (name, expected)]
    close(weights[0], weights[1], rtol)
    close(states[0]["model"], states[1]["model"], rtol)
    close(states[0]["average"], states[1]["average"], rtol)
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]
    close(states[0]["optimizer"]["state"], states[1]["optimizer"]["state"], rtol)


def curve(folder: Path, name: str) -> dict[int, float]:
    """The loss of each step, as its line has it: to four decimals."""
    lines = re.findall(r"step (\d+)  loss (-?\d+\.\d{4}) ", (folder / f"{name}.log").read_text())
    return {int(step): float(loss) for step, loss in lines}


def close(one: Any, other: Any, rtol: float) -> None:
    """The same structure; tensors of one type and shape, their differences small beside the largest value."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            close(a, b, rtol)
        return
    assert type(one) is type(other) is torch.Tensor
    scale = float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=rtol, atol=10 * rtol * scale + 1e-5)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in MODELS if name != "SqueezeWave" for way in ("ddp", "fsdp")),
        *BACKPROPS.items(),
    ],
)
def test_two_processes_train_what_one_does(folder: Path, name: str, way: str) -> None:
    """At every step, and to the same end."""
    compare(folder, f"{name}-{way}", f"{name}-one")
    expected = curve(folder, f"{name}-one")
    assert list(expected) == list(range(1, SETTINGS["steps"] + 1))
    assert len(set(expected.values())) == len(expected)
    assert curve(folder, f"{name}-{way}") == pytest.approx(expected, rel=1e-4, abs=2e-4)


def test_batch_normalisation_is_the_first_process_s_as_under_ddp(folder: Path) -> None:
    compare(folder, "SqueezeWave-fsdp", "SqueezeWave-ddp")

    one, two = ranks(folder, "buffers")
    assert one == two
    assert len(one["SqueezeWave-fsdp"]) > 1


def ranks(folder: Path, key: str) -> list[Any]:
    """What each of the two processes has written down."""
    return [json.loads((folder / f"rank{rank}.json").read_text())[key] for rank in range(2)]


def test_each_process_has_half(folder: Path) -> None:
    one, two = ranks(folder, "counts")
    whole = {name: parameter.numel() for name, parameter in make("Glow").named_parameters()}
    assert {name: one[name] + two[name] for name in whole} == whole
    assert sum(one.values()) < 0.6 * sum(whole.values())


def test_resumed_by_another_number_of_processes(folder: Path) -> None:
    run("WaveGlow", folder, "begun", resume=True)  # two processes began it
    facts = json.loads((folder / "begun.json").read_text())
    assert (facts["processes"], facts["progress"]["step"]) == (1, SETTINGS["steps"])
    compare(folder, "begun", "begun-one")
    compare(folder, "resumed", "begun-one")  # one process began it


def test_a_bad_step_in_float16_is_skipped_by_all(folder: Path) -> None:
    compare(folder, "half-fsdp", "half-one", rtol=5e-3)
    assert json.loads((folder / "half-fsdp.json").read_text())["progress"]["skipped_steps"] == 1


def test_what_cannot_be_sharded(folder: Path) -> None:
    expected = "`backprop` must be 'autograd' where `parallel` is 'fsdp'; got 'recompute'"
    assert ranks(folder, "message") == [expected] * 2
    assert not list(folder.glob("refused.*"))
    with pytest.raises(TrainingError, match="`parallel` must be one of ddp, fsdp; got 'dp'"):
        run("Glow", folder, "refused", parallel="dp")
