"""The training loop: a budget in steps or minutes, an exponential average of the weights, files to resume from."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastflow.files import remove_leftovers, write_whole
from fastflow.models import ImageFlow, Vocoder
from fastflow.nn import ActNorm
from fastflow.nn.backprop import ReconstructionError

from .display import Display
from .objective import Objective, TrainingData, objective_of
from .settings import PRECISIONS, Progress, Settings, TrainingError
from .signals import stop_requests
from .state import Averages, check_output, keep_only, load_state, save_state, state_of, state_path
from .world import PARALLEL, World

FINAL_LR = 0.01  # the cosine ends at this fraction of the peak
MAX_SKIPPED_IN_A_ROW = 10
SETTLED_STEPS = 100  # before them no loss counts as a spike
VALIDATION_BATCHES = 8


def train(
    model: Vocoder | ImageFlow,
    dataset: TrainingData,
    output: str | os.PathLike[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 8,
    lr: float = 1e-3,
    warmup: float = 0.02,
    sigma: float = 1.0,
    clip: float = 10.0,
    spike: float = 10.0,
    ema: float = 0.999,
    precision: str = "float32",
    workers: int = 0,
    parallel: str = "ddp",
    validation: TrainingData | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    keep: int = 0,
    from_data: bool = True,
    log_every: float = 10.0,
    dtype: torch.dtype | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains `model` in place with its published loss, on the device where it is, and returns the run's facts.

    Three files appear and are replaced, each whole, every `save_every` minutes and at the end:
      `output` (.safetensors)     the averaged weights in `dtype` (None: float32), for fastflow.load, or Glow.load
      `output` with .json         facts: settings, steps, time, loss, data, device, versions
      `output` with .state.pt     everything `resume=True` needs to go on
    and beside them, with `keep`, NAME.stepN.safetensors and NAME.stepN.state.pt of the last so many saves.
    With a budget in `steps`, stopping and resuming gives the weights of an uninterrupted run bit for bit; a budget in
    `minutes` counts training time only and ties the learning rate to the clock, so two such runs differ. A finished run
    resumed with a larger budget goes on, at the learning rate of its place in that budget.

    In a process group of torch.distributed (`torchrun`) all processes train one model: each takes its share of every
    batch, gradients are averaged, the first process writes and logs. The run is that of one process with the same
    `batch_size`, but for the order of sums.

    model: a WaveGlow, SqueezeWave or FloWaveNet, which learn from a SegmentDataset; or a Glow or RealNVP, from an
        ImageDataset, whose loss is bits per dimension.
    steps, minutes: the budget; exactly one of them.
    batch_size: segments or images per step, over all processes. SqueezeWave's batch normalisation sees a process's
        share alone.
    lr: the peak learning rate of Adam; reached linearly over the first `warmup` of the budget, then a cosine to lr/100.
    sigma: of the latent in WaveGlow's loss.
    clip: the largest gradient norm.
    spike: a loss so much above the smoothed one (nats per sample, bits per dimension) makes its step a bad one.
    ema: decay per step of the averaged weights; shorter in the first steps, so that they forget the start.
    precision: of matrix products: "float32", "bfloat16" or "float16" (torch.autocast, float16 with a scaled loss).
    workers: processes that prepare batches.
    parallel: what several processes have: "ddp" the whole model each; "fsdp" a share of it, of its gradients, averages
        and optimizer's state, by FSDP2: a network's weights are gathered for its own forward and backward. For models
        whose training state does not fit; each process makes the whole model first, and has its share afterwards. With
        `model.backprop` "autograd" only. The files are the same: any number of processes goes on from them, either way.
    validation: data whose loss, of the averaged weights, is logged at every save.
    tensorboard: folder for scalars and, with `validation`, audio and mels, or images. A resumed run goes on in it.
    from_data: set a WaveGlow's upsampler and 1x1 weights from statistics of the data first; False to go on from weights
        that are worth keeping, such as a checkpoint's.
    log_every: seconds between log lines on standard error (in a terminal: a progress bar).

    A bad step, whose loss or gradient is not finite or whose loss is a spike, leaves weights and buffers as they are
    and is counted as skipped; ten in a row save and raise TrainingError. Ctrl-C (SIGINT) and SIGTERM save after the
    step in progress and raise KeyboardInterrupt. Where `model.backprop` "invert" cannot have an input back exactly, a
    run in one process saves and raises ReconstructionError; several, who cannot save together then, have their last
    save.
    Raises TrainingError for settings out of range, for an output that exists (without `overwrite` or `resume`), for a
    state that cannot be resumed, and for a model and dataset that do not fit each other.
    """
    output = Path(output)
    settings = Settings(batch_size, lr, warmup, sigma, clip, spike, ema, precision, steps, minutes)
    settings.check()
    if parallel not in PARALLEL:
        raise TrainingError(f"`parallel` must be one of {', '.join(PARALLEL)}; got {parallel!r}")
    world = World.current(parallel)
    if batch_size % world.size:
        raise TrainingError(f"`batch_size` must be a multiple of the {world.size} processes; got {batch_size}")
    objective = objective_of(model, dataset, sigma, dtype)
    if validation is not None:
        objective.check(validation)
    if world.sharded and model.backprop != "autograd":
        raise TrainingError(f"`backprop` must be 'autograd' where `parallel` is 'fsdp'; got {model.backprop!r}")
    check_output(output, resume, overwrite)
    if world.writes:
        remove_leftovers(output)
    kept = _kept(settings, dataset)
    if not resume:
        _start(objective, dataset, batch_size, from_data)
    whole = copy.deepcopy(objective).cpu() if world.sharded and world.writes else objective  # what is written
    replica = world.parallel(objective)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    average = Averages(parameters)
    progress = Progress()
    tools = {"optimizer": optimizer, "scaler": scaler}
    if resume:
        progress = load_state(state_path(output), model, average.values, tools, kept, world)
    board = None if tensorboard is None else Path(tensorboard)
    display = Display(settings, log_every, progress, unit=dataset.unit, silent=not world.writes, tensorboard=board)
    world.write(display.open)
    step_samples = batch_size * dataset.units

    def save(*, validating: bool = True) -> dict[str, Any]:
        world.equal_buffers(objective)
        progress.validation_loss = None
        if keep:
            progress.saves = sorted({*progress.saves, progress.step})[-keep:]
        # The weights first: where the disk fills up, they are what is worth most. What looks at other data, which may
        # be damaged, comes when weights and state are safe.
        with average:
            weights = world.whole(model.state_dict())
            if whole is not objective:
                whole.model.load_state_dict(weights)
            world.write(lambda: whole.save(output, dtype))
        state = world.whole(state_of(model, average.values, tools, progress, kept))
        world.write(lambda: save_state(state_path(output), state))
        if validation is not None and validating:
            with average:
                progress.validation_loss = _validate(objective, validation, batch_size, world)
        facts = _facts(model, dataset, settings, progress, device, world)

        def write_rest() -> None:
            with write_whole(output.with_suffix(".json"), overwrite=True, error=TrainingError) as path:
                path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if keep:
                keep_only(output, progress.saves)
            if validation is not None and progress.validation_loss is not None:
                with nullcontext() if world.sharded else average:  # what is whole has the averages already
                    display.validation(whole.model, validation, progress.validation_loss, progress)

        world.write(write_rest)
        return facts

    model.train()
    skipped_in_a_row = 0
    last_save = progress.seconds
    prepared = _batches(dataset, progress.step, batch_size, world, workers)
    with stop_requests() as stop, display, prepared as batches:
        while (done := settings.done(progress)) < 1.0:
            started = time.monotonic()
            rate = lr * _schedule(done, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = _to(device, next(batches))
            buffers = [buffer.clone() for buffer in objective.buffers()]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, PRECISIONS[precision], enabled=PRECISIONS[precision] is not None):
                loss = replica(*batch)
            try:
                scaler.scale(loss).backward()
            except ReconstructionError:
                if world.size == 1:
                    _put_back(objective, buffers)
                    save(validating=False)
                raise
            scaler.unscale_(optimizer)
            norm = float(world.whole(torch.nn.utils.clip_grad_norm_(parameters, clip), everywhere=True))
            value = float(world.mean(loss))
            smoothed = progress.loss if progress.step >= SETTLED_STEPS else math.nan
            bad = not (math.isfinite(value) and math.isfinite(norm)) or value > smoothed + spike
            if not bad:
                scaler.step(optimizer)
                average.follow(min(ema, (1 + progress.step) / (10 + progress.step)))
                skipped_in_a_row = 0
                progress.loss = value if math.isnan(progress.loss) else 0.98 * progress.loss + 0.02 * value
            else:
                _put_back(objective, buffers)
                progress.skipped_steps += 1
                skipped_in_a_row += 1
                if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                    save(validating=False)
                    if not math.isfinite(value):
                        cause = "whose loss is not finite"
                    elif not math.isfinite(norm):
                        cause = "whose gradient is not finite"
                    else:
                        cause = f"whose loss is a spike: more than {spike:g} above the smoothed {smoothed:.4f}"
                    raise TrainingError(
                        f"loss {value} and gradient norm {norm} at step {progress.step}, the {skipped_in_a_row}th bad "
                        f"one in a row, {cause}; {output} holds the weights before them: try a lower `lr` than {lr}"
                    )
            scaler.update()
            progress.step += 1
            progress.samples += step_samples
            stopping, progress.seconds = world.agree(stop.requested, progress.seconds + time.monotonic() - started)
            error = model.reconstruction_error if model.backprop == "invert" else None
            display.step(value, rate, norm, step_samples, progress, error)
            if stopping:
                save()
                raise KeyboardInterrupt
            if progress.seconds - last_save >= 60 * save_every and settings.done(progress) < 1.0:
                save()
                last_save = progress.seconds
        facts = save()
    average.put(average.values)
    model.eval()
    return facts


@torch.no_grad()
def _put_back(objective: Objective, buffers: list[Tensor]) -> None:
    """Undo what a forward did to the buffers: batch normalisation counts what it sees, NaNs too."""
    for buffer, before in zip(objective.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _to(device: torch.device, batch: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.to(device) for tensor in batch]


@torch.no_grad()
def _start(objective: Objective, dataset: TrainingData, batch_size: int, from_data: bool) -> None:
    """Set the weights that are to begin from data rather than from random numbers; the same in all processes."""
    if from_data:
        objective.start(dataset)
    if any(isinstance(module, ActNorm) and not module.initialized for module in objective.modules()):
        device = next(objective.parameters()).device
        objective(*_to(device, dataset.batch(0, batch_size)))


@torch.no_grad()
def _validate(objective: Objective, data: TrainingData, batch_size: int, world: World) -> float:
    """The mean loss of the same batches each time."""
    objective.eval()
    device = next(objective.parameters()).device
    losses = []
    for number in range(VALIDATION_BATCHES):
        batch = data.batch(number, batch_size, (world.rank, world.size))
        losses.append(world.mean(objective(*_to(device, batch))))
    objective.train()  # weights that modules packed for evaluation go with it: FSDP's are other ones next time
    return float(torch.stack(losses).mean())


def _schedule(done: float, warmup: float) -> float:
    """The learning rate over its peak: up linearly over `warmup` of the budget, then down a cosine to FINAL_LR."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    phase = (done - warmup) / (1 - warmup)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * phase))


class _Batches(Dataset[tuple[Tensor, ...]]):
    """A process's share of each batch, by number."""

    def __init__(self, dataset: TrainingData, size: int, world: World) -> None:
        self.dataset, self.size, self.world = dataset, size, world

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        return self.dataset.batch(number, self.size, (self.world.rank, self.world.size))


class _From(Sampler[int]):
    """All numbers from `first` on: where a run is resumed, its batches are."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return iter(count(self.first))


@contextmanager
def _batches(
    dataset: TrainingData, first: int, size: int, world: World, workers: int
) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """The batches from number `first` on; their workers end with the `with` block, however that ends."""
    batches: Any = iter(
        DataLoader(
            _Batches(dataset, size, world),
            batch_size=None,
            sampler=_From(first),
            num_workers=workers,
            worker_init_fn=_undisturbed,
        )
    )
    try:
        yield batches
    finally:
        # Left to itself, an iterator that a traceback holds on to ends after multiprocessing's own exit, which waits
        # for workers that wait for this. PyTorch has no public name for it.
        if workers:
            batches._shutdown_workers()


def _undisturbed(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every one of a job.

    This one goes on, since the step in progress may need it, until the process that it works for ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _kept(settings: Settings, dataset: TrainingData) -> dict[str, Any]:
    """What a resumed run should have in common with its beginning: all settings but the budget."""
    options = asdict(settings) | dataset.options()
    return {name: value for name, value in options.items() if name not in ("steps", "minutes")}


def _facts(
    model: Vocoder | ImageFlow,
    dataset: TrainingData,
    settings: Settings,
    progress: Progress,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    import fastflow

    return {
        "config": model.config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": _kept(settings, dataset) | {"steps": settings.steps, "minutes": settings.minutes},
        "progress": asdict(progress),
        "data": dataset.facts(),
        "device": _device_name(device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "versions": {
            "fastflow": fastflow.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
