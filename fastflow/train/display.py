"""What a run shows: a progress bar in a terminal, a line now and then otherwise; TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fastflow.audio.plot import comparison_figure
from fastflow.models import ImageFlow, Vocoder, quantize

from .data import SegmentDataset
from .images import ImageDataset
from .objective import TrainingData
from .settings import Progress, Settings, TrainingError

HEARD_SECONDS = 4.0
SEEN = 16  # images of one picture


class Display:
    """The log of one process; `silent` in all but the first of several.

    Args:
        settings: of the run.
        every: seconds between lines.
        progress: where the run begins.
        unit: what a step's samples are: "samples" or "images".
        silent: show nothing.
        tensorboard: folder for TensorBoard's files, or None.
    """

    def __init__(
        self,
        settings: Settings,
        every: float,
        progress: Progress,
        *,
        unit: str,
        silent: bool,
        tensorboard: Path | None,
    ) -> None:
        self.settings = settings
        self.every = every
        self.unit = unit
        self.silent = silent
        self._bar: Any = None
        self._board: Any = None
        self._folder, self._first = tensorboard, progress.step
        self._begun = min(settings.done(progress), 1.0)
        self._last = progress.seconds
        self._losses: list[float] = []
        self._reconstruction: list[float] = []
        self._samples = 0

    def open(self) -> None:
        """Open TensorBoard's files.

        Raises:
            TrainingError: their packages are missing, or the folder cannot be written to.
        """
        if self._folder is None:
            return
        try:
            import matplotlib.figure  # noqa: F401  # for the spectrograms, hours later
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                f"`tensorboard` needs the packages of pip install 'fastflow[tensorboard]': {error}"
            ) from error
        try:
            # without what a lost run showed after the save that this one goes on from
            self._board = SummaryWriter(self._folder, purge_step=self._first + 1 if self._first else 0)
        except OSError as error:
            raise TrainingError(f"`tensorboard` {self._folder} cannot be written to: {error}") from error

    def __enter__(self) -> Display:
        if sys.stderr.isatty() and not self.silent:
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}  {postfix}"
            self._bar = tqdm(total=1.0, initial=self._begun, bar_format=layout)
        return self

    def __exit__(self, *_: object) -> None:
        for thing in (self._bar, self._board):
            if thing is not None:
                thing.close()

    def step(
        self, loss: float, rate: float, norm: float, samples: int, progress: Progress, reconstruction: float | None
    ) -> None:
        """Show a step, or keep it for the next line; `reconstruction` is the error of inversion over its bound."""
        if self.silent:
            return
        self._losses.append(loss)
        self._samples += samples
        if reconstruction is not None:
            self._reconstruction.append(reconstruction)
        passed = progress.seconds - self._last
        done = self.settings.done(progress)
        if done < 1.0 and passed < (self.every if self._bar is None else 1.0):
            return
        mean = sum(self._losses) / len(self._losses)
        speed = self._samples / max(passed, 1e-9)
        line = (
            f"step {progress.step}  loss {mean:.4f}  lr {rate:.2e}  grad {norm:.2f}  {speed:,.0f} {self.unit}/s  "
            f"{progress.seconds / 60:.1f} min"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
            self._bar.update(min(done, 1.0) - self._bar.n)
        else:
            print(f"{100 * min(done, 1.0):5.1f} %  {line}", file=sys.stderr, flush=True)
        scalars = {"loss": mean, "learning rate": rate, "gradient norm": norm, f"{self.unit} per second": speed}
        if self._reconstruction:
            scalars["reconstruction error over its bound"] = max(self._reconstruction)
        self._scalars(scalars, progress.step)
        self._last = progress.seconds
        self._losses.clear()
        self._reconstruction.clear()
        self._samples = 0

    def validation(self, model: Vocoder | ImageFlow, dataset: TrainingData, loss: float, progress: Progress) -> None:
        """Show the validation loss, and what the model makes: of the first clip's mel, or images."""
        if self.silent:
            return
        if self._bar is None:
            print(f"         step {progress.step}  validation loss {loss:.4f}", file=sys.stderr, flush=True)
        self._scalars({"validation loss": loss}, progress.step)
        if self._board is not None:
            if isinstance(model, ImageFlow):
                assert isinstance(dataset, ImageDataset)
                self._see(model, dataset, progress.step)
            else:
                assert isinstance(dataset, SegmentDataset)
                self._hear(model, dataset, progress.step)

    def _scalars(self, values: dict[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    @torch.no_grad()
    def _hear(self, model: Vocoder, dataset: SegmentDataset, step: int) -> None:
        source = dataset.first(HEARD_SECONDS)
        mel = dataset.mel(source)
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(dataset.seed)
        model.eval()  # the published synthesis, of batch normalisation too
        audio = model.infer(mel.to(device), model.usual_sigma, generator=generator)[0].cpu()
        audio = audio.nan_to_num(0.0).clamp(-1, 1)  # an early model's may overflow, and is shown all the same
        model.train()
        for name, signal in (("source", source), ("model", audio)):
            self._board.add_audio(name, signal[None], step, sample_rate=dataset.sampling_rate)
        # closing is pyplot's, to which this figure is unknown
        self._board.add_figure("source and model", comparison_figure(source, audio, dataset.mel), step, close=False)

    @torch.no_grad()
    def _see(self, model: ImageFlow, dataset: ImageDataset, step: int) -> None:
        height, width = dataset.shape[1:]
        generator = torch.Generator(next(model.parameters()).device).manual_seed(dataset.seed)
        samples = quantize(model.sample(SEEN, height, width, generator=generator), dataset.n_bits).cpu()
        if samples.shape[1] != 3:
            samples = samples[:, :1]
        self._board.add_images("samples", samples / (2**dataset.n_bits - 1), step)
