"""One picture of a resynthesis: both waveforms and both log-mels, one above the other."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastflow.audio._checks import as_signal, check_rate, missing_extra
from fastflow.audio.errors import AudioError
from fastflow.audio.mel import MelSpectrogram
from fastflow.files import check_target, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_WIDTH_INCHES = 11
_INCHES_PER_PART = 0.85
_DPI = 120
# A waveform is drawn as the extremes of this many stretches: more than the picture has columns, and few
# enough that an hour of audio does not exceed what the renderer can hold.
_STRETCHES = 2000
# Natural logarithm, about 87 dB: a floor reached by only one signal would otherwise take most of the colours.
_COLOUR_RANGE = 10.0
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)


def plot_comparison(
    path: str | os.PathLike[str],
    reference: Tensor,
    estimate: Tensor,
    sampling_rate: int,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a PNG of both waveforms and both log-mels, one above the other, on one time axis in seconds.

    reference, estimate: audio [T] or [1, T], finite, at least 513 samples each, on any device; the lengths
    may differ. The waveforms share one amplitude scale, the log-mels (80 bands up to 8 kHz or half the rate,
    hop 256) one colour scale. The file appears whole or not at all; AudioError names the path or the argument
    and the reason.
    """
    path = _check(path, sampling_rate, overwrite)
    _write(path, comparison_figure(reference, estimate, _front_end(sampling_rate)), overwrite)


def plot_mel_comparison(
    path: str | os.PathLike[str],
    reference_mel: Tensor,
    estimate: Tensor,
    sampling_rate: int,
    *,
    front_end: MelSpectrogram | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the same picture where the input is a log-mel [80, F] and there is no input waveform to draw.

    The mel must be of the bands and the hop that `plot_comparison` names, or of `front_end`. Raises as it does.
    """
    path = _check(path, sampling_rate, overwrite)
    signal = as_signal(estimate, "`estimate`")
    front_end = front_end or _front_end(sampling_rate)
    if reference_mel.dim() != 2 or reference_mel.shape[0] != front_end.n_mels:
        raise AudioError(f"`reference_mel` must be [{front_end.n_mels}, F]; got {list(reference_mel.shape)}")
    mels = {"Input log-mel": reference_mel.detach().cpu().double(), "Output log-mel": front_end(signal)[0]}
    _write(path, _figure({"Output waveform": signal}, mels, front_end), overwrite)


def _check(path: str | os.PathLike[str], sampling_rate: int, overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise AudioError(f"cannot write {path}: the name must end in .png; got {path.suffix!r}")
    check_rate(sampling_rate)
    check_target(path, overwrite=overwrite, error=AudioError)
    return path


def _front_end(sampling_rate: int) -> MelSpectrogram:
    return MelSpectrogram(sampling_rate, f_max=min(8000.0, sampling_rate / 2))


def comparison_figure(reference: Tensor, estimate: Tensor, front_end: MelSpectrogram) -> Figure:
    """The picture of `plot_comparison` as a matplotlib figure, with the log-mels of `front_end`, at whose rate both
    signals are. Raises AudioError as that does, ModuleNotFoundError where matplotlib is missing.
    """
    signals = {
        "Input waveform": as_signal(reference, "`reference`"),
        "Output waveform": as_signal(estimate, "`estimate`"),
    }
    mels = {name.replace("waveform", "log-mel"): front_end(signal)[0] for name, signal in signals.items()}
    return _figure(signals, mels, front_end)


def _write(path: Path, figure: Figure, overwrite: bool) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with write_whole(path, overwrite=overwrite, error=AudioError) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _figure(signals: dict[str, Tensor], mels: dict[str, Tensor], front_end: MelSpectrogram) -> Figure:
    """Titled waveforms and log-mels, one above the other."""
    try:
        # A Figure of its own and not pyplot: neither the program's backend nor its current figure is touched.
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise missing_extra("matplotlib", "plot") from None

    heights = [2] * len(signals) + [3] * len(mels)
    figure = Figure(figsize=(_WIDTH_INCHES, _INCHES_PER_PART * sum(heights)), dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    peak = max(float(signal.abs().max()) for signal in signals.values()) or 1.0
    for ax, (title, signal) in zip(axes, signals.items(), strict=False):
        _draw_waveform(ax, signal, front_end.sampling_rate)
        ax.set_title(title, loc="left")
        ax.set_ylabel("Amplitude\n(full scale 1)")
        ax.set_ylim(-1.05 * peak, 1.05 * peak)

    top = max(float(mel.max()) for mel in mels.values())
    bottom = max(min(float(mel.min()) for mel in mels.values()), top - _COLOUR_RANGE)
    # Two signals of silence have one value only, which should look like silence.
    top = max(top, bottom + 1)
    panels = list(axes[len(signals) :])
    for ax, (title, mel) in zip(panels, mels.items(), strict=True):
        image = _draw_mel(ax, mel, front_end, bottom, top)
        ax.set_title(title, loc="left")
        ax.set_ylabel("Frequency (Hz, mel scale)")
    figure.colorbar(image, ax=panels, label=front_end.unit, pad=0.01)
    panels[-1].set_xlabel("Time (s)")
    panels[-1].set_xlim(0, max(len(signal) for signal in signals.values()) / front_end.sampling_rate)
    return figure


def _draw_waveform(ax: Axes, signal: Tensor, sampling_rate: int) -> None:
    times = torch.arange(len(signal), dtype=torch.float64) / sampling_rate
    if len(signal) > 2 * _STRETCHES:
        stretches = signal.tensor_split(_STRETCHES)
        signal = torch.stack([torch.stack([part.min(), part.max()]) for part in stretches]).reshape(-1)
        starts = torch.stack([part[0] for part in times.tensor_split(_STRETCHES)])
        times = starts.repeat_interleave(2)
    ax.plot(times.numpy(), signal.numpy(), linewidth=0.6, color="tab:blue")
    ax.axhline(0, linewidth=0.4, color="black", alpha=0.4)


def _draw_mel(ax: Axes, mel: Tensor, front_end: MelSpectrogram, bottom: float, top: float) -> AxesImage:
    from librosa import mel_frequencies

    bands, frames = mel.shape
    # A frame is centred on f * hop: its column of the image spans half a hop to either side.
    hop = front_end.hop_length / front_end.sampling_rate
    image = ax.imshow(
        mel.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=bottom,
        vmax=top,
        extent=(-0.5 * hop, (frames - 0.5) * hop, -0.5, bands - 0.5),
    )
    # Edges of the filters, in Hz; all but the first and the last are the centres of the bands.
    edges = mel_frequencies(n_mels=bands + 2, fmin=front_end.f_min, fmax=front_end.f_max)
    ticks = [hz for hz in _TICKS_HZ if hz <= front_end.f_max]
    # The last edge lies half a band above the image.
    places = np.interp(ticks, edges, np.arange(bands + 2) - 1.0).clip(max=bands - 0.5)
    ax.set_yticks(places, [str(hz) for hz in ticks])
    ax.set_ylim(-0.5, bands - 0.5)
    return image
