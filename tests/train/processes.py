"""What two processes of test_parallel.py run: trainings of small models, side by side in one start of Python.

Run as `processes.py RANK SIZE PORT FOLDER`; all that it makes goes to FOLDER.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastflow.audio import front_end
from fastflow.models import FloWaveNet, Glow, SqueezeWave, WaveGlow
from fastflow.train import ImageDataset, SegmentDataset, TrainingError, train

MODELS = ("WaveGlow", "FloWaveNet", "SqueezeWave", "Glow")
BACKPROPS = {"WaveGlow": "recompute", "FloWaveNet": "invert"}  # under DDP, beside autograd
WN = {"n_layers": 1, "n_channels": 8, "kernel_size": 3}
SETTINGS: dict[str, Any] = {"steps": 6, "batch_size": 4, "lr": 3e-3, "clip": 1.0}


def make(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if name == "WaveGlow":
        return WaveGlow(80, 2, 8, 4, 2, WN, conditioning="group")
    if name == "SqueezeWave":
        return SqueezeWave(80, 2, 128, 2, 16, WN)
    if name == "FloWaveNet":
        return FloWaveNet(1, 80, 2, 2, 1, block_per_split=1, filter_size=8)
    return Glow(1, n_levels=2, n_steps=1, hidden_channels=8)


def data_of(name: str, model: Any, folder: Path) -> Any:
    if name == "Glow":
        return ImageDataset([folder / "images.npy"], seed=3)
    return SegmentDataset([folder / "speech"], segment=2048, seed=3, mel=front_end(model))


class HalfBad(ImageDataset):
    """The second image of batch 1, which is the second process's, is not finite."""

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor]:
        (x,) = super().batch(number, size)
        if number == 1:
            x[1] = float("nan")
        first, step = share
        return (x[first::step],)


def run(name: str, folder: Path, output: str, *, backprop: str = "autograd", **settings: Any) -> Any:
    """Train a fresh model of this name, its own data being its validation too, and return it.

    Each process starts from weights of its own: the first one's are to be taken. OUTPUT.log has every step's line.
    """
    model = make(name, dist.get_rank() if dist.is_initialized() else 0)
    model.backprop = backprop
    data = data_of(name, model, folder)
    often = {"save_every": 1e-9} if name == "Glow" else {}  # with averaged weights, in and out, between the steps
    options = {"validation": data, "log_every": 0.0, **SETTINGS, **often, **settings}
    with redirect_stderr(io.StringIO()) as said:
        train(model, data, folder / f"{output}.safetensors", **options)
    if said.getvalue():  # the first process's
        (folder / f"{output}.log").write_text(said.getvalue())
    return model


def run_half(folder: Path, output: str, parallel: str) -> None:
    """Train a Glow in float16, with a bad step."""
    data = HalfBad([folder / "images.npy"], seed=3)
    train(make("Glow"), data, folder / output, parallel=parallel, precision="float16", **SETTINGS)


def main() -> None:
    rank, size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    buffers = {}
    for name in MODELS:
        for parallel in ("ddp", "fsdp"):
            model = run(name, folder, f"{name}-{parallel}", parallel=parallel)
            buffers[f"{name}-{parallel}"] = [float(buffer.double().sum()) for buffer in model.buffers()]
    for name, backprop in BACKPROPS.items():
        run(name, folder, f"{name}-{backprop}", backprop=backprop)
    counts = {key: parameter.to_local().numel() for key, parameter in model.named_parameters()}
    run("WaveGlow", folder, "resumed", parallel="fsdp", resume=True)
    run("WaveGlow", folder, "begun", parallel="fsdp", steps=2)
    run_half(folder, "half-fsdp.safetensors", "fsdp")
    message = ""
    try:
        run("WaveGlow", folder, "refused", parallel="fsdp", backprop="recompute")
    except TrainingError as error:
        message = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps({"counts": counts, "buffers": buffers, "message": message}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
