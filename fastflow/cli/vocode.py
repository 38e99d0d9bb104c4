"""``fastflow vocode``: mels or audio in, audio out."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastflow.cli import inputs, options

if TYPE_CHECKING:
    from torch import Tensor

    from fastflow.audio.mel import MelSpectrogram
    from fastflow.models import Vocoder

SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")


@click.command()
@click.argument("arguments", metavar="IN...", nargs=-1, required=True, type=options.TEXT)
@click.option(
    "-o",
    "--output",
    type=options.TEXT,
    metavar="OUT",
    required=True,
    help="Audio file for one input, or a directory.",
)
@click.option(
    "--model",
    type=options.TEXT,
    default="waveglow-small",
    show_default=True,
    help="Checkpoint file, or a bundled model's name.",
)
@click.option(
    "--sigma",
    type=float,
    help="Standard deviation of the noise, >= 0; default: 0.6 for WaveGlow, 0.8 for FloWaveNet, 1 for SqueezeWave.",
)
@click.option("--denoise", type=float, default=0.0, metavar="STRENGTH", help="Remove the model's bias; 0.01 to 0.1.")
@click.option(
    "--refine",
    type=click.IntRange(0),
    metavar="N",
    help="Iterations that bring the audio to its mel; default: 30 for a bundled model, 0 for a checkpoint.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the noise.")
@options.device
@options.dtype
@options.backend
@click.option("--subtype", type=click.Choice(SUBTYPES), default="PCM_16", show_default=True)
@click.option("--plot", is_flag=True, help="Also write a picture of input and output beside each output.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def vocode(
    arguments: tuple[str, ...],
    output: str,
    model: str,
    sigma: float | None,
    denoise: float,
    refine: int | None,
    seed: int,
    device: str,
    dtype: str,
    backend: str,
    subtype: str,
    plot: bool,
    overwrite: bool,
) -> None:
    """Turn mel spectrograms, or audio by way of its mel spectrogram, into audio.

    IN is audio (wav, flac, ogg, mp3, ...) or log-mel spectrograms (.npy, .npz, .pt; [80, T] or [B, 80, T]):
    files, directories (searched recursively) or quoted globs. OUT is the file to write when there is one item
    and OUT ends in .wav or .flac; otherwise a directory, where NAME.* becomes NAME.wav and item i of a batch
    NAME_i.wav. Directories keep their inner structure.

    The same --seed gives the same audio for a file, whatever other files are in the call. Memory grows with
    the longest item: each is synthesised in one piece.

    Exit status: 0 all written, 1 some inputs failed (the others are written), 2 wrong usage (nothing is
    written), 130 interrupted (what was finished is written).
    """
    options.require(sigma is None or 0 <= sigma < float("inf"), f"`--sigma` must be >= 0; got {sigma}")
    options.require(0 <= denoise < float("inf"), f"`--denoise` must be >= 0; got {denoise:g}")
    options.require(
        not plot or importlib.util.find_spec("matplotlib") is not None,
        "`--plot` needs matplotlib: pip install 'fastflow[plot]'",
    )
    options.check_name(Path(output))
    options.check_device(device)
    options.check_backend(backend)

    plan = _plan(arguments, Path(output), subtype, plot, overwrite)
    try:
        if plan.items:
            synthesis = _Synthesis(model, sigma, denoise, refine, seed, device, dtype, backend)
            _run(plan, synthesis, subtype, plot, overwrite)
    finally:
        for reason in plan.failures:
            options.warn(f"failed: {reason}")
    if plan.failures:
        sys.exit(1)


@dataclass
class _Plan:
    """What to do, settled before any of it is done."""

    items: list[inputs.Item]
    failures: list[str]


def _plan(arguments: tuple[str, ...], output: Path, subtype: str, plot: bool, overwrite: bool) -> _Plan:
    sources, missing = inputs.find_sources(arguments, exclude=output)
    failures = [f"{name}: {reason}" for name, reason in missing]
    options.require(bool(sources), f"no inputs found: {'; '.join(failures)}")

    counted: list[tuple[inputs.Source, int | None]] = []  # None: one item, which keeps the file's name
    for source in sources:
        try:
            counted.append((source, inputs.count(source)))
        except inputs.InputError as error:
            failures.append(f"{source.path}: {error}")

    if not counted:
        return _Plan([], failures)
    n_items = sum(1 if n is None else n for _, n in counted)
    if len(sources) == 1 and inputs.names_a_file(output, n_items):
        options.require(
            output.suffix.lower() in inputs.OUTPUT_SUFFIXES,
            f"`-o {output}`: only {' and '.join(inputs.OUTPUT_SUFFIXES)} can be written",
        )
        items = [inputs.Item(counted[0][0], None, output)]
    else:
        options.require(
            os.path.isdir(output) or output.suffix.lower() not in inputs.FILE_SUFFIXES,
            f"`-o {output}` names one file, but there are {_number(n_items, 'item')} "
            f"from {_number(len(sources), 'input')}: name a directory",
        )
        options.require(
            os.path.isdir(output) or not os.path.lexists(output), f"`-o {output}` is a file, not a directory"
        )
        items = [item for source, n in counted for item in inputs.output_paths(source, n, output)]

    clashes = inputs.collisions(items)
    options.require(not clashes, "; ".join(clashes))
    options.require(
        subtype != "FLOAT" or all(item.output.suffix.lower() == ".wav" for item in items),
        "`--subtype FLOAT` needs a .wav output",
    )
    options.check_writable(output if items and items[0].output != output else output.parent)

    read_from = {source.path.resolve() for source in sources}
    ready = []
    for item in items:
        reason = _refusal(item, read_from, plot, overwrite)
        if reason is None:
            ready.append(item)
        else:
            failures.append(f"{item.name}: {reason}")
    return _Plan(ready, failures)


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _refusal(item: inputs.Item, read_from: set[Path], plot: bool, overwrite: bool) -> str | None:
    """Why this item's outputs may not be written, or None."""
    for path in [item.output] + ([item.output.with_suffix(".png")] if plot else []):
        if os.path.isdir(path):
            return f"the output {path} is a directory"
        if path.resolve() in read_from:
            return f"the output {path} is an input of this call"
        if os.path.lexists(path) and not overwrite:
            return f"the output {path} exists (--overwrite replaces it)"
    return None


@dataclass
class _Result:
    """``audio`` [T] made from ``mel`` [n_mels, F], which comes from ``source`` [T] if the input is audio."""

    audio: Tensor
    mel: Tensor
    source: Tensor | None
    took: float  # seconds for the synthesis alone


class _Synthesis:
    """The model with everything that is asked of it: mel or audio in, float32 audio on the CPU out."""

    def __init__(
        self,
        model: str,
        sigma: float | None,
        denoise: float,
        refine: int | None,
        seed: int,
        device: str,
        dtype: str,
        backend: str,
    ) -> None:
        import torch

        import fastflow
        from fastflow.audio.consistency import USUAL_ITERATIONS, MelConsistency
        from fastflow.audio.denoiser import Denoiser
        from fastflow.audio.mel import front_end
        from fastflow.checkpoints import is_bundled

        self.model: Vocoder = options.load_model(model, device, dtype)
        self.n_mels = self.model.n_mel_channels
        self.sampling_rate = self.model.sampling_rate
        self.sigma = self.model.usual_sigma if sigma is None else sigma
        self.strength, self.seed, self.backend = denoise, seed, backend
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.to_mel = front_end(self.model)
        if refine is None:  # a published model's audio is what its publication's would be
            refine = USUAL_ITERATIONS if is_bundled(model) else 0
        self.refine = refine
        self.consistency = MelConsistency(front_end(self.model)).to(self.device) if refine else None
        self.denoiser: Denoiser | None = None
        self.mel_file: tuple[Path, Tensor] | None = None  # the last one: the items of a batch follow each other
        try:
            with fastflow.use_backend(backend):
                # What would fail for every file fails here; and what is slow only once is not timed below.
                self.model.infer(torch.zeros(1, self.n_mels, 1, device=self.device, dtype=self.dtype), sigma=0.0)
                if denoise > 0:
                    self.denoiser = Denoiser(self.model, hop_length=self.model.hop_length)
        except (ValueError, RuntimeError) as error:
            raise options.UsageError(options.describe(model, error)) from error

    def __call__(self, item: inputs.Item) -> _Result:
        import torch

        import fastflow
        from fastflow.audio.io import read_audio

        source = None
        if item.source.is_mel:
            mel = self._mel(item)
        else:
            source = read_audio(item.source.path, self.sampling_rate)
            mel = self.to_mel(source)
        # A generator per item: the noise of a file does not depend on the files before it.
        generator = torch.Generator(self.device).manual_seed(self.seed)
        start = time.perf_counter()
        with fastflow.use_backend(self.backend):
            audio = self.model.infer(mel.to(self.device, self.dtype), sigma=self.sigma, generator=generator)
            if self.denoiser is not None:
                audio = self.denoiser(audio.float(), strength=self.strength)
        if source is not None:
            first = self.to_mel.lead(len(source))
            audio = audio[:, first : first + len(source)]
        if self.consistency is not None:
            audio = self.consistency(audio, mel.to(self.device), self.refine)
        audio = audio[0].float().cpu()  # waits for the device
        took = time.perf_counter() - start
        return _Result(audio, mel[0].float(), source, took)

    def _mel(self, item: inputs.Item) -> Tensor:
        import torch

        from fastflow.ops.checks import check_finite

        path = item.source.path
        if self.mel_file is None or self.mel_file[0] != path:
            self.mel_file = path, inputs.load_mel(path)
        mel = self.mel_file[1]
        if mel.shape[-2] != self.n_mels:
            hint = " (transposed?)" if mel.shape[-1] == self.n_mels else ""
            expected = f"[{self.n_mels}, T] or [B, {self.n_mels}, T]"
            raise inputs.InputError(f"`mel` must be {expected}; got {list(mel.shape)}{hint}")
        if mel.ndim == 3:
            mel = mel[item.index or 0]
        check_finite("mel", mel)
        if self.model.mel_form == "flowavenet" and mel.numel() and not 0 <= mel.min() <= mel.max() <= 1:
            values = f"{float(mel.min()):.3g} to {float(mel.max()):.3g}"
            raise inputs.InputError(f"`mel` must be of FloWaveNet's front end, with values in 0..1; got {values}")
        if self.model.mel_form == "flowavenet" and self.consistency is not None:
            raise inputs.InputError(
                "`--refine` needs audio, not its mel, where the model is a FloWaveNet: where the frames lie depends on "
                "how long the audio was"
            )
        if not torch.isfinite(mel.to(self.dtype)).all():
            name = str(self.dtype).removeprefix("torch.")
            raise inputs.InputError(f"`mel` must fit into {name}; got values up to {float(mel.abs().max()):.3g}")
        return mel[None]


def _run(plan: _Plan, synthesis: _Synthesis, subtype: str, plot: bool, overwrite: bool) -> None:
    from fastflow.audio.io import write_audio
    from fastflow.cli.progress import progress

    seconds = spent = 0.0
    written = 0
    try:
        for item in progress(plan.items, synthesis.model):
            try:
                result = synthesis(item)
                item.output.parent.mkdir(parents=True, exist_ok=True)
                clipped = write_audio(
                    item.output, result.audio, synthesis.sampling_rate, subtype=subtype, overwrite=overwrite
                )
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                plan.failures.append(options.describe(item.name, error))
                continue
            samples = len(result.audio)
            seconds += samples / synthesis.sampling_rate
            spent += result.took
            written += 1
            if clipped:
                options.warn(f"warning: {item.output}: {round(clipped * samples)} of {samples} samples were clipped")
            if plot and samples <= synthesis.to_mel.n_fft // 2:
                options.warn(f"note: no picture of {item.output}: {samples} samples are too short to draw")
            elif plot:
                try:
                    _plot(item.output.with_suffix(".png"), result, synthesis.to_mel, overwrite)
                except (ValueError, OSError, RuntimeError, MemoryError) as error:
                    plan.failures.append(options.describe(f"picture of {item.output}", error))
    finally:  # Ctrl-C too: what is written is said
        if written:
            speed = (
                f", real-time factor {spent / seconds:.3f} ({seconds / spent:.1f} times real time)" if seconds else ""
            )
            what = options.printable(str(plan.items[0].output)) if len(plan.items) == 1 else _number(written, "file")
            click.echo(f"{what}: {seconds:.2f} s of audio in {spent:.2f} s{speed}")


def _plot(path: Path, result: _Result, to_mel: MelSpectrogram, overwrite: bool) -> None:
    from fastflow.audio.plot import plot_comparison, plot_mel_comparison

    if result.source is None:
        rate = to_mel.sampling_rate
        plot_mel_comparison(path, result.mel, result.audio, rate, front_end=to_mel, overwrite=overwrite)
    else:
        plot_comparison(path, result.source, result.audio, to_mel.sampling_rate, overwrite=overwrite)
