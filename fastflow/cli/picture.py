"""The picture of a synthesis whose input is a mel spectrogram: there is no input waveform to draw."""

from __future__ import annotations

import io
from pathlib import Path

from torch import Tensor


def plot_mel_comparison(path: Path, mel: Tensor, audio: Tensor, sampling_rate: int, *, overwrite: bool) -> None:
    """Writes a PNG: the output's waveform, the input's and the output's log-mel, on one time axis.

    mel: [80, F]; audio: [T], at least 513 samples. Looks like `fastflow.audio.plot_comparison` without its
    first panel.
    """
    from matplotlib.figure import Figure

    from fastflow.audio import AudioError, MelSpectrogram, plot
    from fastflow.audio._files import write_whole

    front_end = MelSpectrogram(sampling_rate)
    output_mel = front_end(audio)[0]
    if mel.shape[0] != front_end.n_mels:
        raise AudioError(f"cannot draw {path}: the input has {mel.shape[0]} mel bands, not {front_end.n_mels}")
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    waveform, *panels = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 3))
    plot._draw_waveform(waveform, audio, sampling_rate)
    waveform.set_title("Output waveform", loc="left")
    waveform.set_ylabel("Amplitude\n(full scale 1)")
    top = max(float(mel.max()), float(output_mel.max()))
    for ax, values, title in zip(panels, (mel, output_mel), ("Input log-mel", "Output log-mel"), strict=True):
        image = plot._draw_mel(ax, values, front_end, top - plot._COLOUR_RANGE, top)
        ax.set_title(title, loc="left")
        ax.set_ylabel("Frequency (Hz, mel scale)")
    figure.colorbar(image, ax=panels, label="ln(mel magnitude)", pad=0.01)
    panels[-1].set_xlabel("Time (s)")
    panels[-1].set_xlim(0, len(audio) / sampling_rate)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue(), overwrite=overwrite)
