"""The training loop: a budget in steps or minutes, an exponential average of the weights, files to resume from."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import fastflow.checkpoints
from fastflow.files import check_target, write_whole
from fastflow.models import WaveGlow, WaveGlowLoss

from .data import SegmentDataset
from .start import start_from_data

log = logging.getLogger("fastflow")

FINAL_LR = 0.01  # the cosine ends at this fraction of the peak
MAX_SKIPPED_IN_A_ROW = 10


class TrainingError(RuntimeError):
    """Training cannot start, go on, or be resumed; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What decides the weights besides the model and the data."""

    batch_size: int
    lr: float
    warmup: float
    sigma: float
    clip: float
    ema: float
    bf16: bool
    steps: int | None
    minutes: float | None


@dataclass
class Progress:
    """How far training has come; part of the resumable state."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    skipped_steps: int = 0
    loss: float = math.nan  # smoothed, over the steps that were not skipped; nan before the first of them


def train(
    model: WaveGlow,
    dataset: SegmentDataset,
    output: str | os.PathLike[str],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 8,
    lr: float = 1e-3,
    warmup: float = 0.02,
    sigma: float = 1.0,
    clip: float = 10.0,
    ema: float = 0.999,
    bf16: bool = False,
    save_every: float = 5.0,
    log_every: float = 10.0,
    dtype: torch.dtype | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains `model` in place with the published loss, on the device where it is, and returns the run's facts.

    Three files appear and are replaced, each whole, every `save_every` minutes and at the end:
      `output` (.safetensors)     the averaged weights, for fastflow.load, in `dtype` (None: float32)
      `output` with .json         facts: settings, steps, time, loss, data, device, versions
      `output` with .state.pt     everything `resume=True` needs to go on
    With a budget in `steps`, stopping and resuming gives the weights of an uninterrupted run bit for bit; a budget in
    `minutes` counts training time only and ties the learning rate to the clock, so two such runs differ. A finished run
    resumed with a larger budget goes on, at the learning rate of its place in that budget.

    steps, minutes: the budget; exactly one of them.
    batch_size: segments per step.
    lr: the peak learning rate of Adam; reached linearly over the first `warmup` of the budget, then a cosine to lr/100.
    sigma: of the latent in the loss.
    clip: the largest gradient norm.
    ema: decay per step of the averaged weights; shorter in the first steps, so that they forget the start.
    bf16: matrix products in bfloat16 (torch.autocast).
    log_every: seconds between log lines on standard error (in a terminal: a progress bar).

    A step whose loss or gradient is not finite leaves the weights as they are and is counted as skipped; ten in a row
    raise TrainingError. Ctrl-C (SIGINT) and SIGTERM save after the step in progress and raise KeyboardInterrupt.
    Raises TrainingError for settings out of range, for an output that exists (without `overwrite` or `resume`), for a
    state that cannot be resumed, and for a model and dataset that do not fit each other.
    """
    output = Path(output)
    settings = Settings(batch_size, lr, warmup, sigma, clip, ema, bf16, steps, minutes)
    _check(settings, model, dataset)
    _check_output(output, resume, overwrite)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    if not resume:
        start_from_data(model, dataset)
    average = [p.detach().clone() for p in parameters]
    progress = Progress()
    if resume:
        progress = _load_state(_state_path(output), model, average, optimizer, _kept(settings, dataset))
    criterion = WaveGlowLoss(sigma)
    display = _Log(settings, log_every, progress)
    step_samples = batch_size * dataset.segment

    def save() -> dict[str, Any]:
        facts = _facts(model, dataset, settings, progress, device)
        try:  # the weights first: where the disk fills up, they are what is worth most
            with _swapped(parameters, average):
                fastflow.checkpoints.save(model, output, dtype=dtype, overwrite=True)
        except fastflow.checkpoints.CheckpointError as error:
            raise TrainingError(str(error)) from error
        _save_state(_state_path(output), model, average, optimizer, progress, _kept(settings, dataset))
        with write_whole(output.with_suffix(".json"), overwrite=True, error=TrainingError) as path:
            path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts

    model.train()
    skipped_in_a_row = 0
    last_save = progress.seconds
    with _stop_requests() as stop, display:
        while (done := _done(settings, progress)) < 1.0:
            started = time.monotonic()
            rate = lr * _schedule(done, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            mel, audio = dataset.batch(progress.step, batch_size)
            mel, audio = mel.to(device), audio.to(device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                result = model((mel, audio))
            loss = criterion(result)
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
            value = float(loss.detach())
            if math.isfinite(value) and math.isfinite(norm):
                optimizer.step()
                _follow(average, parameters, min(ema, (1 + progress.step) / (10 + progress.step)))
                skipped_in_a_row = 0
                progress.loss = value if math.isnan(progress.loss) else 0.98 * progress.loss + 0.02 * value
            else:
                progress.skipped_steps += 1
                skipped_in_a_row += 1
                if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                    raise TrainingError(
                        f"loss {value} and gradient norm {norm} at step {progress.step}, the {skipped_in_a_row}th in a "
                        f"row not finite; {output}, if it exists, holds good weights: try a lower `lr` than {lr}"
                    )
            progress.step += 1
            progress.samples += step_samples
            progress.seconds += time.monotonic() - started
            display.step(value, rate, norm, step_samples, progress)
            if stop.requested:
                save()
                raise KeyboardInterrupt
            if progress.seconds - last_save >= 60 * save_every:
                save()
                last_save = progress.seconds
    facts = save()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    model.eval()
    return facts


def _check(settings: Settings, model: WaveGlow, dataset: SegmentDataset) -> None:
    if (settings.steps is None) == (settings.minutes is None):
        raise TrainingError(f"give `steps` or `minutes`, one of them; got {settings.steps} and {settings.minutes}")
    positive = {"steps": settings.steps, "minutes": settings.minutes}
    positive |= {name: getattr(settings, name) for name in ("batch_size", "lr", "sigma", "clip")}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise TrainingError(f"`{name}` must be more than 0; got {value}")
    for name in ("warmup", "ema"):
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise TrainingError(f"`{name}` must be at least 0 and less than 1; got {value}")
    if dataset.sampling_rate != model.sampling_rate:
        raise TrainingError(f"the model works at {model.sampling_rate} Hz, the dataset at {dataset.sampling_rate} Hz")
    if dataset.hop_length != model.hop_length:
        raise TrainingError(f"the model's hop is {model.hop_length} samples, the dataset's {dataset.hop_length}")


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise TrainingError(f"`output` must end in .safetensors; got {output}")
    for path in (output, output.with_suffix(".json"), _state_path(output)):
        check_target(path, overwrite=True, error=TrainingError)
        if os.path.lexists(path) and not (resume or overwrite):
            raise TrainingError(f"{path} exists; resume=True goes on from it, overwrite=True replaces it")
    if resume and not _state_path(output).is_file():
        raise TrainingError(f"nothing to resume: {_state_path(output)} does not exist")


def _done(settings: Settings, progress: Progress) -> float:
    """The part of the budget that is used, 0 to 1."""
    if settings.steps is not None:
        return progress.step / settings.steps
    assert settings.minutes is not None
    return progress.seconds / (60 * settings.minutes)


def _schedule(done: float, warmup: float) -> float:
    """The learning rate over its peak: up linearly over `warmup` of the budget, then down a cosine to FINAL_LR."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    phase = (done - warmup) / (1 - warmup)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * phase))


@torch.no_grad()
def _follow(average: list[Tensor], parameters: list[torch.nn.Parameter], decay: float) -> None:
    for mean, parameter in zip(average, parameters, strict=True):
        mean.lerp_(parameter, 1 - decay)


@contextmanager
def _swapped(parameters: list[torch.nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """The averaged weights in the model, the trained ones back afterwards."""
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
        try:
            yield
        finally:
            for parameter, mean in zip(parameters, kept, strict=True):
                parameter.copy_(mean)


def _state_path(output: Path) -> Path:
    return output.with_suffix(".state.pt")


def _save_state(
    path: Path,
    model: WaveGlow,
    average: list[Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    kept: dict[str, Any],
) -> None:
    state = {
        "settings": kept,
        "config": json.dumps(model.config),
        "model": model.state_dict(),
        "average": average,
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    with write_whole(path, overwrite=True, error=TrainingError) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what its writer makes of a full disk
            raise TrainingError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def _load_state(
    path: Path,
    model: WaveGlow,
    average: list[Tensor],
    optimizer: torch.optim.Optimizer,
    kept: dict[str, Any],
) -> Progress:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, settings, progress = json.loads(state["config"]), dict(state["settings"]), Progress(**state["progress"])
        expected = json.loads(json.dumps(model.config))
        if config == expected:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                for mean, saved in zip(average, state["average"], strict=True):
                    mean.copy_(saved)
    except Exception as error:  # torch.load raises many types, none of them documented, and long advice
        raise TrainingError(
            f"cannot resume from {path}: it is damaged or no state of fastflow train ({type(error).__name__})"
        ) from error
    if config != expected:
        raise TrainingError(f"cannot resume from {path}: it holds a model of config {config}; got {expected}")
    changed = [
        f"{name} {settings.get(name)} is now {value}" for name, value in kept.items() if settings.get(name) != value
    ]
    if changed:
        log.warning("the run that %s resumes had other settings: %s", path, ", ".join(changed))
    return progress


def _kept(settings: Settings, dataset: SegmentDataset) -> dict[str, Any]:
    """What a resumed run should have in common with its beginning: all settings but the budget."""
    options = asdict(settings) | {"segment": dataset.segment, "seed": dataset.seed, "dither": dataset.dither}
    return {name: value for name, value in options.items() if name not in ("steps", "minutes")}


def _facts(
    model: WaveGlow, dataset: SegmentDataset, settings: Settings, progress: Progress, device: torch.device
) -> dict[str, Any]:
    import fastflow

    sources = sorted({"/".join(path.parts[-3:-1]) for path in dataset.files})
    return {
        "config": model.config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": _kept(settings, dataset) | {"steps": settings.steps, "minutes": settings.minutes},
        "progress": asdict(progress),
        "data": {
            "sources": sources,
            "files": len(dataset.files),
            "skipped_files": len(dataset.skipped),
            "minutes": round(dataset.seconds / 60, 2),
        },
        "device": _device_name(device),
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


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turns SIGINT and SIGTERM into a flag, so that no step is torn apart. A second signal acts at once."""
    stop = _Stop()
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)
        previous.clear()

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals cannot be taken over, and none arrive here
        previous.clear()
    try:
        yield stop
    finally:
        restore()


class _Log:
    """A progress bar in a terminal, a line every `every` seconds otherwise."""

    def __init__(self, settings: Settings, every: float, progress: Progress) -> None:
        self.settings = settings
        self.every = every
        self.bar: Any = None
        self._last = progress.seconds
        self._losses: list[float] = []
        self._samples = 0

    def __enter__(self) -> _Log:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}  {postfix}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, loss: float, rate: float, norm: float, samples: int, progress: Progress) -> None:
        self._losses.append(loss)
        self._samples += samples
        passed = progress.seconds - self._last
        done = _done(self.settings, progress)
        if self.bar is not None and passed < 1.0 and done < 1.0:
            return
        if self.bar is None and passed < self.every and done < 1.0:
            return
        mean = sum(self._losses) / len(self._losses)
        speed = self._samples / max(passed, 1e-9)
        line = (
            f"step {progress.step}  loss {mean:.4f}  lr {rate:.2e}  grad {norm:.2f}  {speed:,.0f} samples/s  "
            f"{progress.seconds / 60:.1f} min"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(min(done, 1.0) - self.bar.n)
        else:
            print(f"{100 * min(done, 1.0):5.1f} %  {line}", file=sys.stderr, flush=True)
        self._last = progress.seconds
        self._losses.clear()
        self._samples = 0
