"""The comparison picture: what is drawn, what is left alone, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import torch

from fastflow.audio import AudioError, MelSpectrogram, plot_comparison

RATE = 22050


@pytest.fixture
def figures(monkeypatch):
    """Every Figure that is saved, as it was when it was saved."""
    saved = []
    true_savefig = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        saved.append(self)
        return true_savefig(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return saved


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_one_png(tmp_path, voice):
    plot_comparison(tmp_path / "x.png", voice, 0.5 * voice, RATE)
    assert files_in(tmp_path) == ["x.png"]
    pixels = matplotlib.image.imread(tmp_path / "x.png")
    height, width = pixels.shape[:2]
    assert height > 900
    assert width > 1200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100


def test_four_rows_with_shared_scales(tmp_path, voice, figures):
    estimate = torch.cat([0.5 * voice, torch.zeros(3000)])
    plot_comparison(tmp_path / "x.png", voice, estimate, RATE)
    (figure,) = figures
    *rows, _colourbar = figure.axes
    assert [ax.get_title(loc="left") for ax in rows] == [
        "Input waveform",
        "Output waveform",
        "Input log-mel",
        "Output log-mel",
    ]
    tops = [ax.get_position().y1 for ax in rows]
    assert tops == sorted(tops, reverse=True)
    assert {ax.get_xlim() for ax in rows} == {(0, len(estimate) / RATE)}
    assert rows[3].get_xlabel() == "Time (s)"
    assert rows[0].get_ylim() == rows[1].get_ylim()
    assert rows[0].get_ylim()[1] >= voice.abs().max()

    images = [ax.get_images()[0] for ax in rows[2:]]
    assert images[0].get_clim() == images[1].get_clim()
    np.testing.assert_allclose(images[0].get_array(), MelSpectrogram()(voice)[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(images[1].get_array(), MelSpectrogram()(estimate)[0].numpy(), atol=1e-5)


def test_waveform_peaks_survive_thinning(tmp_path, figures):
    """One sample of a minute stands out in the picture, at its place."""
    audio = torch.zeros(60 * RATE)
    audio[20 * RATE] = 0.9
    audio[40 * RATE] = -0.8
    plot_comparison(tmp_path / "x.png", audio, audio, RATE)
    times, values = figures[0].axes[0].get_lines()[0].get_data()
    assert len(values) <= 4000
    assert (values.max(), values.min()) == pytest.approx((0.9, -0.8))
    assert times[values.argmax()] == pytest.approx(20, abs=0.05)
    assert times[values.argmin()] == pytest.approx(40, abs=0.05)


@pytest.mark.parametrize(("rate", "length"), [(RATE, 513), (8000, 600), (48000, 3000)])
def test_silence_short_audio_and_other_rates(tmp_path, rate, length):
    plot_comparison(tmp_path / "x.png", torch.zeros(1, length), torch.zeros(length), rate)
    assert files_in(tmp_path) == ["x.png"]


def test_global_state_is_left_alone(tmp_path, voice):
    before = dict(matplotlib.rcParams)
    plot_comparison(tmp_path / "x.png", voice, voice, RATE)
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_refused_targets(tmp_path, voice):
    (tmp_path / "x.png").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("x.png", "it already exists (overwrite=True replaces it)"),
        ("folder.png", "it is a directory"),
        ("no/x.png", f"the directory {tmp_path / 'no'} does not exist"),
        ("x.pdf", "the name must end in .png; got '.pdf'"),
    ):
        with pytest.raises(AudioError) as info:
            plot_comparison(tmp_path / name, voice, voice, RATE)
        assert str(info.value) == f"cannot write {tmp_path / name}: {reason}"
    assert (tmp_path / "x.png").read_bytes() == b"mine"
    assert files_in(tmp_path) == ["folder.png", "x.png"]
    plot_comparison(tmp_path / "x.png", voice, voice, RATE, overwrite=True)
    assert (tmp_path / "x.png").read_bytes()[1:4] == b"PNG"
    assert files_in(tmp_path) == ["folder.png", "x.png"]


def test_refused_audio(tmp_path, voice):
    with pytest.raises(AudioError, match=r"^`estimate` must be \[T\] or \[1, T\]; got \[2, 1000\]$"):
        plot_comparison(tmp_path / "x.png", voice, torch.zeros(2, 1000), RATE)
    with pytest.raises(AudioError, match=r"must have at least 513 samples .* got 512$"):
        plot_comparison(tmp_path / "x.png", voice, voice[:512], RATE)
    with pytest.raises(AudioError, match=r"^`reference` must be finite; 1000 of 1000 values are not"):
        plot_comparison(tmp_path / "x.png", torch.full((1000,), torch.nan), voice, RATE)
    assert files_in(tmp_path) == []


def test_a_missing_matplotlib_is_named(tmp_path, voice, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"^this needs matplotlib: pip install 'fastflow\[plot\]'$"):
        plot_comparison(tmp_path / "x.png", voice, voice, RATE)
