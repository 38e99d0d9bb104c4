"""The metrics: their fixed points, their order, their definitions restated in numpy, and what they refuse."""

from __future__ import annotations

import logging
import math
import sys

import librosa
import numpy as np
import pytest
import scipy.fft
import soxr
import torch
from torch import Tensor

from fastflow.audio import AudioError, MelSpectrogram, evaluate, griffin_lim, metrics

RATE = 22050
ALL = [
    metrics.log_mel_distance,
    metrics.mel_cepstral_distortion,
    metrics.stoi,
    metrics.pesq,
    metrics.f0_error,
    metrics.evaluate,
]


def with_noise(audio: Tensor, snr_db: float) -> Tensor:
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(3))
    return audio + noise * audio.std() * 10 ** (-snr_db / 20)


def test_equal_signals(voice):
    result = evaluate(voice, voice.clone(), RATE)
    assert list(result) == [
        "log_mel_distance",
        "mel_cepstral_distortion",
        "stoi",
        "pesq",
        "f0_rmse_cents",
        "voicing_error",
    ]
    assert all(type(value) is float for value in result.values())
    assert result["log_mel_distance"] == 0
    assert result["mel_cepstral_distortion"] == 0
    assert result["stoi"] == pytest.approx(1, abs=1e-6)
    assert result["pesq"] > 4.5
    assert result["f0_rmse_cents"] == 0
    assert result["voicing_error"] == 0


def test_more_noise_is_worse_everywhere(voice):
    clean, mild, strong = (evaluate(voice, with_noise(voice, snr), RATE) for snr in (60, 20, 0))
    for name in ("log_mel_distance", "mel_cepstral_distortion"):
        assert clean[name] < mild[name] < strong[name], name
    for name in ("stoi", "pesq"):
        assert clean[name] > mild[name] > strong[name], name
    # The tracker does not mind a little noise.
    assert clean["voicing_error"] <= mild["voicing_error"] < strong["voicing_error"]


def test_shapes_dtypes_and_argument_order(voice):
    noisy = with_noise(voice, 10)
    expected = metrics.log_mel_distance(voice, noisy, RATE)
    assert metrics.log_mel_distance(voice[None].double(), noisy[None].double(), RATE) == pytest.approx(
        expected, rel=1e-6
    )
    assert metrics.log_mel_distance(noisy, voice, RATE) == pytest.approx(expected, rel=1e-9)
    # STOI looks for the speech in the reference, so the order matters there.
    assert metrics.stoi(voice, noisy, RATE) != metrics.stoi(noisy, voice, RATE)


def test_other_rates_are_measured_alike(voice):
    """The same signals at 48 kHz give the same figures, but for what the conversions round."""
    noisy = with_noise(voice, 10)
    here = evaluate(voice, noisy, RATE)
    up = [torch.from_numpy(soxr.resample(x.numpy(), RATE, 48000, quality="VHQ")) for x in (voice, noisy)]
    there = evaluate(*up, 48000)
    for name, value in here.items():
        # The tracker's decision at the edge of a syllable is a close one: five frames of this voice.
        tolerance = 0.06 if name == "voicing_error" else 0.01
        assert there[name] == pytest.approx(value, rel=0.05, abs=tolerance), name


# Definitions


def librosa_mel(audio: Tensor) -> np.ndarray:
    return librosa.feature.melspectrogram(
        y=audio.double().numpy(),
        sr=RATE,
        n_fft=1024,
        hop_length=256,
        pad_mode="reflect",
        power=1.0,
        n_mels=80,
        fmax=8000.0,
    )


def test_log_mel_distance_of_a_gain_is_the_gain_in_db(voice):
    loud = 0.5 + 0.4 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert metrics.log_mel_distance(loud, 2 * loud, RATE) == pytest.approx(20 * math.log10(2), abs=1e-4)


def test_mel_figures_restated(voice):
    """In dB from librosa's mel and SciPy's DCT."""
    noisy = with_noise(voice, 15)
    db = [20 * np.log10(np.maximum(1e-5, librosa_mel(x))) for x in (voice, noisy)]
    expected = np.sqrt(np.mean((db[1] - db[0]) ** 2))
    assert metrics.log_mel_distance(voice, noisy, RATE) == pytest.approx(expected, rel=1e-4)

    # Keep cosines 1 to 13 of the difference; its RMS over the bands is the frame's distortion.
    cosines = scipy.fft.dct(db[1] - db[0], axis=0, norm="ortho")
    cosines[0] = 0
    cosines[14:] = 0
    smooth = scipy.fft.idct(cosines, axis=0, norm="ortho")
    expected = np.sqrt(np.mean(smooth**2, axis=0)).mean()
    assert metrics.mel_cepstral_distortion(voice, noisy, RATE) == pytest.approx(expected, rel=1e-4)


def test_mel_cepstral_distortion_ignores_loudness():
    loud = 0.5 + 0.4 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert metrics.mel_cepstral_distortion(loud, 2 * loud, RATE) == pytest.approx(0, abs=1e-4)


def test_f0_error_of_a_semitone_is_100_cents(voice, higher_voice):
    error = metrics.f0_error(voice, higher_voice, RATE)
    assert error.rmse_cents == pytest.approx(100, abs=15)
    assert error.voicing_error < 0.1


def test_f0_error_restated(voice, monkeypatch):
    """Cents over the frames voiced in both, and the fraction of frames voiced in only one."""
    nan, semitone = math.nan, 2 ** (1 / 12)
    tracks = iter([[100, nan, 200, nan, 150, 90], [100 * semitone, 150, nan, nan, 150, 90 / semitone]])
    monkeypatch.setattr(metrics, "_f0", lambda signal: torch.tensor(next(tracks), dtype=torch.float64))
    error = metrics.f0_error(voice, voice, RATE)
    assert error.rmse_cents == pytest.approx(math.sqrt((100**2 + 0 + 100**2) / 3))
    assert error.voicing_error == pytest.approx(2 / 6)


def test_pesq_of_long_audio_is_the_mean_of_its_parts(voice, monkeypatch):
    noisy = with_noise(voice, 15)
    whole = metrics.pesq(voice, noisy, RATE)
    monkeypatch.setattr(metrics, "_PESQ_SECONDS", 1.5)
    x, y = (torch.from_numpy(soxr.resample(s.double().numpy(), RATE, 16000, quality="VHQ")) for s in (voice, noisy))
    half = len(x) // 2
    parts = [metrics.pesq(x[:half], y[:half], 16000), metrics.pesq(x[half:], y[half:], 16000)]
    assert metrics.pesq(x, y, 16000) == pytest.approx(sum(parts) / 2, abs=1e-6)
    assert metrics.pesq(x, y, 16000) == pytest.approx(whole, abs=0.5)


# What has no figure


@pytest.mark.parametrize("silent", ["reference", "estimate", "both"])
def test_silence(voice, caplog, silent):
    """No exception, nan where there is nothing to measure, and the reason in the log."""
    x = torch.zeros_like(voice) if silent != "estimate" else voice
    y = torch.zeros_like(voice) if silent != "reference" else voice
    with caplog.at_level(logging.WARNING, "fastflow.audio"):
        result = evaluate(x, y, RATE)
    assert math.isnan(result["pesq"])
    assert math.isnan(result["f0_rmse_cents"])
    assert "PESQ is not defined here: a signal is silent" in caplog.messages
    assert "the F0 error is not defined here: no frame is voiced in both signals" in caplog.messages
    if silent == "estimate":
        assert result["stoi"] == pytest.approx(0, abs=1e-6)
    else:
        assert math.isnan(result["stoi"])
        assert "STOI is not defined here: the reference is silent" in caplog.messages
    assert (result["log_mel_distance"] == 0) == (silent == "both")


def test_too_short_for_stoi_and_pesq(voice, caplog):
    short = voice[:4000]
    with caplog.at_level(logging.WARNING, "fastflow.audio"):
        result = evaluate(short, short, RATE)
    assert math.isnan(result["stoi"])
    assert math.isnan(result["pesq"])
    assert "STOI is not defined here: the reference holds less than 0.4 s of speech" in caplog.messages
    assert "PESQ is not defined here: less than a quarter of a second" in caplog.messages
    assert result["log_mel_distance"] == 0


def test_no_utterance(caplog, monkeypatch, voice):
    import pesq

    def find_none(*_args):
        raise pesq.NoUtterancesError(b"No utterances detected")

    monkeypatch.setattr(pesq, "pesq", find_none)
    with caplog.at_level(logging.WARNING, "fastflow.audio"):
        assert math.isnan(metrics.pesq(voice, voice, RATE))
    assert caplog.messages == ["PESQ is not defined here: no utterance found"]


# Lengths


@pytest.mark.parametrize("metric", ALL[:-1])
def test_lengths_within_four_hops_are_cut(voice, metric):
    shorter = voice[:-1024]
    expected = metric(shorter, shorter, RATE)
    assert metric(voice, shorter, RATE) == expected
    assert metric(shorter, voice, RATE) == expected


@pytest.mark.parametrize("metric", ALL)
def test_lengths_further_apart_are_refused(voice, metric):
    got = f"{len(voice) - 1025} and {len(voice)}"
    message = rf"^`estimate` must be as long as `reference` within 1024 samples; got {got}$"
    with pytest.raises(AudioError, match=message):
        metric(voice, voice[:-1025], RATE)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("length", [0, 1, 1023])
def test_too_short_for_one_frame(metric, length):
    message = rf"^`reference` and `estimate` must have at least 1024 samples; got {length} and {length}$"
    with pytest.raises(AudioError, match=message):
        metric(torch.zeros(length), torch.zeros(length), RATE)


@pytest.mark.parametrize("metric", ALL)
def test_shortest_audio(voice, metric):
    metric(voice[3000:4024], voice[3000:4024], RATE)


# Arguments


@pytest.mark.parametrize("metric", ALL)
def test_refused_audio(voice, metric):
    bad = voice.clone()
    bad[11] = torch.nan
    with pytest.raises(
        AudioError,
        match=rf"^`estimate` must be finite; 1 of {len(bad)} values are not, the first at index 11$",
    ):
        metric(voice, bad, RATE)
    with pytest.raises(AudioError, match=r"^`reference` must be \[T\] or \[1, T\]; got \[2, 5000\]$"):
        metric(torch.zeros(2, 5000), voice, RATE)
    with pytest.raises(AudioError, match=r"^`estimate` must be floating point; got torch\.int16$"):
        metric(voice, voice.short(), RATE)
    with pytest.raises(AudioError, match=r"^`sampling_rate` must be an int in 1000\.\.1000000 Hz; got 0$"):
        metric(voice, voice, 0)


@pytest.mark.parametrize(("name", "package"), [("stoi", "pystoi"), ("pesq", "pesq")])
def test_a_missing_package_is_named(voice, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"^this needs {package}: pip install 'fastflow\[metrics\]'$"):
        getattr(metrics, name)(voice, voice, RATE)


# Griffin-Lim


def test_griffin_lim_gives_the_mel_back(voice):
    front_end = MelSpectrogram()
    mel = front_end(voice)[0]
    audio = griffin_lim(mel)
    assert audio.dtype == torch.float32
    assert audio.shape == (256 * (mel.shape[1] - 1),)
    assert torch.equal(audio, griffin_lim(mel))
    assert metrics.stoi(voice, audio, RATE) > 0.8
    few = griffin_lim(mel, n_iter=1)
    assert metrics.log_mel_distance(voice, audio, RATE) < metrics.log_mel_distance(voice, few, RATE)


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (torch.zeros(80, 4), r"`mel` must be \[80, F\] with F at least 5; got \[80, 4\]"),
        (torch.zeros(1, 80, 9), r"`mel` must be \[80, F\] with F at least 5; got \[1, 80, 9\]"),
        (torch.zeros(9, 80), r"`mel` must be \[80, F\] with F at least 5; got \[9, 80\]"),
        (torch.zeros(80, 9, dtype=torch.int64), "`mel` must be a floating-point tensor; got torch.int64"),
        (np.zeros((80, 9)), "`mel` must be a floating-point tensor; got ndarray"),
        (
            torch.full((80, 9), torch.inf),
            r"`mel` must be finite; 720 of 720 values are not, the first at index \[0, 0\]",
        ),
    ],
)
def test_griffin_lim_refuses(mel, message):
    with pytest.raises(AudioError, match=f"^{message}$"):
        griffin_lim(mel)
