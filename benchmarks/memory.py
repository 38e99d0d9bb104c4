"""Memory and time of a training step, by what its backward keeps: rows of their own for each number of flows.

    python -m benchmarks.memory                      # WaveGlow-256, 16,000 samples, 4 to 24 flows: a quarter of an hour
    python -m benchmarks.memory --flows 12 --rounds 5
    python -m benchmarks.memory --tiny               # the same code at toy sizes, to see that it runs
    python -m benchmarks.memory --device cuda --dtype bfloat16 --batch 8 --flows 12

A step is forward, loss and backward, without an optimizer, in float32 or under autocast. Variants: the published
arithmetic in PyTorch, eager; fastflow with each value of `model.backprop`. Each is a process of its own, and they take
turns. Each one's gradients are held against the eager ones in float32 before it is timed; under autocast, twice the
error of eager autocast is allowed. On a machine that others use too, processor time with `--threads 1` says more than
the clock (with several threads, one that waits for another counts as busy). What is measured of memory:

- kept: the bytes that autograd holds when the forward is done, the model's parameters and the inputs left out;
- peak: how far resident memory (on a GPU, what PyTorch has allocated) rises during a step above what it is before, when
  weights and gradients are there already: what is kept, and what comes and goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import cpu
from benchmarks.cpu import RESULTS
from fastflow.bench import rows
from fastflow.bench.check import DTYPES
from fastflow.bench.processes import Answers
from fastflow.bench.rows import Row
from fastflow.bench.timing import Clock
from fastflow.models import WaveGlow, WaveGlowLoss
from fastflow.nn.backprop import BACKPROPS
from fastflow.nn.conv import NormedConv

EAGER = "eager"
VARIANTS = (EAGER, *(f"fastflow, {name}" for name in BACKPROPS))
BOUND = 1e-4  # rms of a gradient's error over the gradient's rms
COMPARED = 64  # values of each parameter's gradient


def model_and_inputs(flows: int, tiny: bool, batch: int = 1) -> tuple[WaveGlow, Tensor, Tensor]:
    """WaveGlow-256 with weight norm and couplings that do something, mels and audio of 16,000 samples."""
    torch.manual_seed(0)
    if tiny:
        sizes = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
        model = WaveGlow(4, flows, 8, 4, 2 if flows <= 12 else 0, sizes, hop_length=8, win_length=16)
    else:
        # as published for up to 12 flows; with more, two channels must be left to the last
        every = 4 if flows <= 12 else 8
        model = WaveGlow(80, flows, 8, every, 2, {"n_layers": 8, "n_channels": 256, "kernel_size": 3})
    for net in model.WN:
        torch.nn.init.normal_(net.end.weight, std=0.1 / net.end.weight.shape[1] ** 0.5)
    samples = 128 if tiny else 16000
    mel = torch.randn(batch, model.n_mel_channels, -(-samples // model.hop_length))
    return model, mel, 0.1 * torch.randn(batch, samples)


def published_loss(model: WaveGlow, mel: Tensor, audio: Tensor) -> Tensor:
    """The published forward and loss on the parameters of one of our models, in PyTorch's own operations."""

    def conv(x: Tensor, of: NormedConv, dilation: int = 1) -> Tensor:
        weight = of.weight if of.weight_v is None else torch._weight_norm(of.weight_v, of.weight_g, 0)
        return F.conv1d(x, weight, of.bias, dilation=dilation, padding=dilation * (weight.shape[2] - 1) // 2)

    group = model.n_group
    spect = F.conv_transpose1d(mel, model.upsample.weight, model.upsample.bias, stride=model.hop_length)
    spect = spect[:, :, : audio.shape[1]].unfold(2, group, group).permute(0, 2, 1, 3)
    spect = spect.contiguous().view(spect.shape[0], spect.shape[1], -1).permute(0, 2, 1)
    x = audio.unfold(1, group, group).permute(0, 2, 1)
    out, log_s_list, log_det_list = [], [], []
    for k, (net, convinv) in enumerate(zip(model.WN, model.convinv, strict=True)):
        if model._is_early(k):
            out.append(x[:, : model.n_early_size])
            x = x[:, model.n_early_size :]
        weight = convinv.conv.weight
        log_det_list.append(x.shape[0] * x.shape[2] * torch.logdet(weight[:, :, 0]))
        x = F.conv1d(x, weight)
        half, channels = x.shape[1] // 2, net.n_channels
        h, cond, skip = conv(x[:, :half], net.start), conv(spect, net.cond_layer), None
        for i, (inner, outer) in enumerate(zip(net.in_layers, net.res_skip_layers, strict=True)):
            u = conv(h, inner, net.dilations[i]) + cond[:, 2 * channels * i : 2 * channels * (i + 1)]
            r = conv(torch.tanh(u[:, :channels]) * torch.sigmoid(u[:, channels:]), outer)
            if i + 1 < len(net.in_layers):
                h, r = h + r[:, :channels], r[:, channels:]
            skip = r if skip is None else skip + r
        o = conv(skip, net.end)
        log_s = o[:, half:]
        x = torch.cat((x[:, :half], torch.exp(log_s) * x[:, half:] + o[:, :half]), 1)
        log_s_list.append(log_s)
    z = torch.cat((*out, x), 1)
    log_s_total = sum(log_s.sum() for log_s in log_s_list)
    return (z.square().sum() / 2 - log_s_total - sum(log_det_list)) / z.numel()


def loss_of(model: WaveGlow, mel: Tensor, audio: Tensor, variant: str) -> Callable[[], Tensor]:
    if variant == EAGER:
        return lambda: published_loss(model, mel, audio)
    model.backprop = variant.split(", ")[1]
    criterion = WaveGlowLoss()
    return lambda: criterion(model((mel, audio)))


def kept_by(loss: Callable[[], Tensor], besides: Sequence[Tensor]) -> float:
    """Run a step; return the MB that autograd held after the forward, but for the memory of the tensors `besides`."""
    sizes: dict[int, int] = {}
    others = {t.untyped_storage().data_ptr() for t in besides}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in others:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = loss()
    result.backward()
    return sum(sizes.values()) / 1e6


def some_of(model: WaveGlow) -> dict[str, Tensor]:
    """Return a few values of each parameter's gradient, the same each time."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None
        places = torch.randint(p.numel(), (COMPARED,), generator=generator).to(p.device)
        found[name] = p.grad.flatten()[places].cpu()
    return found


def off(model: WaveGlow, right: dict[str, Tensor]) -> float:
    """Return the largest error of a parameter's gradient, rms over rms."""
    return max(
        float((got - right[name]).square().mean().sqrt() / right[name].square().mean().sqrt().clamp(min=1e-30))
        for name, got in some_of(model).items()
    )


def worker(spec: dict[str, Any]) -> None:
    """Answer: first the row, checked; then the milliseconds of a step for each line read."""
    answers = Answers()
    torch.set_num_threads(spec["threads"])
    device, dtype = torch.device(spec["device"]), DTYPES[spec["dtype"]]
    loss_of(*model_and_inputs(4, True), spec["variant"])().backward()  # what is imported at first use is there
    model, mel, audio = model_and_inputs(spec["flows"], spec["tiny"], spec["batch"])
    model, mel, audio = model.to(device), mel.to(device), audio.to(device)
    row = Row("memory", spec["case"], "", spec["dtype"], spec["variant"], flows=spec["flows"], threads=spec["threads"])
    row.samples = audio.numel()
    plain = loss_of(model, mel, audio, spec["variant"])

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return plain()

    def step(of: Callable[[], Tensor] = loss) -> None:
        model.zero_grad(set_to_none=False)
        of().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    if spec["variant"] == EAGER:
        step(plain)
        right = some_of(model)
    step()  # in every variant: what a first step makes once and keeps is in none's peak
    if spec["variant"] == EAGER:
        torch.save({"right": right, "bound": BOUND if dtype == torch.float32 else 2 * off(model, right)}, spec["file"])
    model.zero_grad(set_to_none=False)
    besides = [*model.parameters(), mel, audio]
    gc.collect()

    def accounted(_set: int) -> None:
        start = time.process_time()
        row.kept_mb = kept_by(loss, besides)
        row.cpu_ms = (time.process_time() - start) * 1e3

    row.extra_mb = Clock(device).extra_mb(accounted)
    known = torch.load(spec["file"], weights_only=True)
    row.bound, row.error = known["bound"], off(model, known["right"])
    if not row.error <= row.bound:
        row.refused = f"its gradients are out of bounds: {row.error:.2g} > {row.bound:.2g}"
    answers.send(asdict(row))
    for _ in answers.questions():
        start, used = time.perf_counter(), time.process_time()
        step()
        answers.send({"wall": (time.perf_counter() - start) * 1e3, "cpu": (time.process_time() - used) * 1e3})


class Worker(cpu.Worker):
    """A variant's process."""

    module = "benchmarks.memory"
    part = "memory"


def bench(spec: dict[str, Any], variants: Sequence[str], rounds: int) -> list[Row]:
    """Run a training step of one size on all variants, taking turns, and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        spec = spec | {"file": str(Path(folder) / "gradients.pt")}
        workers = []
        try:
            for name in variants:  # one after the other: nothing disturbs a check, and the eager gradients come first
                workers.append(Worker(spec | {"variant": name}))
            cpu.take_turns(workers, rounds)
        finally:
            for w in workers:
                w.close()
    for w in workers:
        if w.times:
            w.row.set_times([t["wall"] for t in w.times])
            w.row.cpu_ms = min(t["cpu"] for t in w.times)
        w.row.load = os.getloadavg()[0]
    return [w.row for w in workers]


def table(made: Sequence[Row]) -> str:
    """Return the rows as a table; ratios to the eager row of as many flows."""
    lines = [
        f"{made[0].case}, {made[0].dtype}, {made[0].threads} threads",
        "| flows | variant | kept, MB | of eager's | peak, MB | of eager's | s, median (least) | of eager's "
        "| processor s | of eager's | error |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in made:
        eager = next((r for r in made if r.flows == row.flows and r.variant == EAGER), None)
        if row.refused or eager is None or eager.refused:
            lines.append(f"| {row.flows} | {row.variant} | {row.refused} | | | | | | | | |")
            continue
        clock = " | "
        if row.median_ms and row.min_ms and eager.median_ms and eager.min_ms:
            clock = f"{row.median_ms / 1e3:.2f} ({row.min_ms / 1e3:.2f}) | {row.median_ms / eager.median_ms:.2f} "
            clock += f"({row.min_ms / eager.min_ms:.2f})"
        lines.append(
            f"| {row.flows} | {row.variant} | {row.kept_mb:.1f} | {row.kept_mb / eager.kept_mb:.3f} "
            f"| {row.extra_mb:.0f} | {row.extra_mb / (eager.extra_mb or 1):.2f} | {clock} "
            f"| {row.cpu_ms / 1e3:.2f} | {row.cpu_ms / eager.cpu_ms:.2f} | {row.error:.0e} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="the latter: autocast")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--flows", type=int, nargs="+", default=[4, 8, 12, 24])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="timed steps; 0 for memory and one step's processor time")
    parser.add_argument("--note", default="", help="what else is known of the machine's state; stored with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=rows.commit(), help="what the rows say was measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        worker(json.loads(options.worker))
        return 0
    device = torch.device(options.device)
    about = rows.about(device, options.commit) | {"note": options.note}
    variants = [EAGER, *(name for name in options.variants if name != EAGER)]
    made: list[Row] = []
    for flows in options.flows:
        case = f"WaveGlow-256 training, {flows} flows" + (f", batch {options.batch}" if options.batch > 1 else "")
        spec = {"case": case, "flows": flows} | {
            name: getattr(options, name) for name in ("device", "dtype", "batch", "threads", "tiny")
        }
        new = bench(spec, variants, options.rounds)
        for row in new:
            row.about = about
        rows.store(new, options.out / rows.machine(device))
        print(table(new) + "\n", flush=True)
        made += new
    print(table(made))
    return 1 if any(row.refused for row in made) else 0


if __name__ == "__main__":
    sys.exit(main())
