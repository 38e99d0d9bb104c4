"""Trains a small Glow on the 8x8 digits that scikit-learn carries, and draws what it has learned.

    python scripts/glow_digits.py [--steps 3000] [--seed 0] [--out docs/pictures/glow-digits.png] [--model FILE]

Prints bits per dimension on held-out digits as it trains, and those of each pixel's histogram beside them. Writes a
picture of held-out digits, samples and the curve, and with --model the trained model as safetensors. One thread of a
CPU: these images are too small to gain from more. The same seed gives the same figures on the same machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.models import Glow, quantize

N_BITS = 4
BATCH = 64
LEARNING_RATE = 1e-3
WARM_UP = 100  # steps
LARGEST_GRADIENT = 1.0
DRAWS = 8  # of the dequantisation noise, whose mean is the figure for the held-out digits
COLUMNS = 10  # of the grids in the picture
TEMPERATURES = (1.0, 0.7)


class Measured(NamedTuple):
    """Bits per dimension after so many steps: of the batches since the last line, and of the held-out digits."""

    step: int
    train: float
    held_out: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=3000, help="of training; default: 3000")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and all noise; default: 0")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/glow-digits.png"), help="the picture")
    parser.add_argument("--model", type=Path, help="where the trained model goes; default: nowhere")
    arguments = parser.parse_args()
    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"glow_digits: {', '.join(missing)} not installed; run: pip install 'fastflow[images]'")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train, held_out = digits()
    print(f"{len(train)} digits to train on, {len(held_out)} held out; {N_BITS} bits, {train[0].numel()} pixels each")
    print(
        f"bits per dimension of the held-out digits: uniform {N_BITS}, each pixel's histogram "
        f"{histogram_bits(train, held_out):.3f}"
    )
    model = Glow(1, n_levels=2, n_steps=8, hidden_channels=64)
    print(f"Glow, {sum(p.numel() for p in model.parameters())} parameters")
    started, curve = time.perf_counter(), []
    for measured in fit(model, train, held_out, arguments.steps):
        curve.append(measured)
        print(
            f"step {measured.step:6d}   train {measured.train:.3f}   held out {measured.held_out:.3f}   "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(arguments.out, model, held_out, curve)
    print(f"wrote {arguments.out}")
    if arguments.model is not None:
        model.save(arguments.model, overwrite=True)
        print(f"wrote {arguments.model}")


def digits() -> tuple[Tensor, Tensor]:
    """Return the digits to train on and the held-out fifth, [B, 1, 8, 8], uint8.

    Their pixels count from 0 to 16; 16 becomes 15, which makes them numbers of 4 bits.
    """
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).clamp(max=2**N_BITS - 1).to(torch.uint8)[:, None]
    images = images[torch.randperm(len(images))]
    held_out = len(images) // 5
    return images[held_out:], images[:held_out]


def histogram_bits(train: Tensor, held_out: Tensor) -> float:
    """Return the bits per dimension of `held_out` under each pixel's own histogram in `train`, counts from one."""
    levels = torch.arange(2**N_BITS)
    counts = (train[..., None] == levels).sum(0) + 1
    bits = -(counts / counts.sum(-1, keepdim=True)).log2()
    return float(bits.expand(len(held_out), *bits.shape).gather(-1, held_out.long()[..., None]).mean())


def fit(model: Glow, train: Tensor, held_out: Tensor, steps: int, every: int = 250) -> Iterator[Measured]:
    """Train `model` in place; yield what is measured every so many steps, and after the last."""
    model.bits_per_dim(train[: 4 * BATCH], N_BITS)  # the start of every actnorm
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    losses: list[float] = []
    for step in range(1, steps + 1):
        batch = train[torch.randint(len(train), (BATCH,))]
        loss = model.bits_per_dim(batch, N_BITS).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            yield Measured(step, sum(losses) / len(losses), measure(model, held_out))
            losses.clear()


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear start, then half a cosine down to zero."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def measure(model: Glow, images: Tensor) -> float:
    """Return bits per dimension, a mean over images and draws of noise that are the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return float(torch.stack([model.bits_per_dim(images, N_BITS, generator=generator) for _ in range(DRAWS)]).mean())


def draw(path: Path, model: Glow, held_out: Tensor, curve: list[Measured]) -> None:
    """Write the picture: held-out digits, samples at each temperature, and the curve."""
    from matplotlib.figure import Figure

    count = COLUMNS * COLUMNS
    grids = {"Held-out digits": held_out[:count]}
    for temperature in TEMPERATURES:
        samples = model.sample(count, 8, 8, temperature, generator=torch.Generator().manual_seed(0))
        grids[f"Samples, temperature {temperature:g}"] = quantize(samples, N_BITS)
    figure = Figure(figsize=(4 * (len(grids) + 1), 4.2), layout="constrained")
    axes = figure.subplots(1, len(grids) + 1)
    for axis, (title, images) in zip(axes, grids.items(), strict=False):
        axis.imshow(tiled(images).numpy(), cmap="gray_r", vmin=0, vmax=2**N_BITS - 1)
        axis.set_title(title)
        axis.axis("off")
    for name in ("train", "held_out"):
        axes[-1].plot([m.step for m in curve], [getattr(m, name) for m in curve], label=name.replace("_", " "))
    axes[-1].set(title="Bits per dimension", xlabel="steps")
    axes[-1].grid(alpha=0.3)
    axes[-1].legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})


def tiled(images: Tensor) -> Tensor:
    """Return images [B, 1, H, W] as one, COLUMNS in a row, a pixel apart."""
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1))
    rows = padded[: len(images) // COLUMNS * COLUMNS].unflatten(0, (-1, COLUMNS))  # [R, COLUMNS, 1, H + 1, W + 1]
    return rows[:, :, 0].transpose(1, 2).flatten(2).flatten(0, 1)


if __name__ == "__main__":
    main()
