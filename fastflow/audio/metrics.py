"""How close resynthesised speech comes to the original, and the baseline it is compared with.

Every metric takes `reference` and `estimate`, finite audio [T] or [1, T] on any device, and their sampling
rate in Hz. Lengths may differ by up to four hops of the mel front end (46 ms), as framing makes them; the
longer one is cut. More than that is an error: such signals are not aligned, and none of these metrics aligns
them. So is less than one window of the front end (46 ms).
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.audio._checks import as_signal, check_finite, check_rate, missing_extra
from fastflow.audio.errors import AudioError
from fastflow.audio.mel import MelSpectrogram

# All mel and F0 figures are taken at the rate of the published front end, so that they compare across files.
_RATE = 22050
_HOP = 256
_WINDOW = 1024
_MAX_HOPS_APART = 4
_DB_PER_NEPER = 20 / math.log(10)
_CEPSTRA = 13
_PESQ_RATE = 16000
# The PESQ code has room for 50 utterances and does not check; they are at least 0.4 s apart (0.2 s of speech,
# 0.2 s of pause), so 20 s cannot hold more.
_PESQ_SECONDS = 20
_F0_RANGE = (60.0, 600.0)
_F0_FRAME = 2048

_log = logging.getLogger("fastflow.audio")


class F0Error(NamedTuple):
    """The RMSE over frames voiced in both signals, nan without any; the fraction voiced in only one."""

    rmse_cents: float
    voicing_error: float


def log_mel_distance(reference: Tensor, estimate: Tensor, sampling_rate: int) -> float:
    """Root mean square difference of the log-mels over all bands and frames, in dB (20 log10 of magnitude).

    0 for equal signals. Frames of silence count: the front end's floor is -100 dB.
    """
    difference = _log_mel_difference(reference, estimate, sampling_rate)
    return float(difference.square().mean().sqrt()) * _DB_PER_NEPER


def mel_cepstral_distortion(reference: Tensor, estimate: Tensor, sampling_rate: int) -> float:
    """Mel-cepstral distortion in dB: the mean over frames of
    10 sqrt(2) / ln 10 * sqrt(sum over m = 1..13 of dc_m**2).

    The formula is R. Kubichek's, "Mel-cepstral distance measure for objective speech quality assessment",
    IEEE PacRim 1993. The cepstra are those of the 80-band log-mel L of `MelSpectrogram`, c_m = 2/80 * sum_j
    L_j cos(pi m (j + 1/2) / 80) (DCT-II), in which L is c_0 / 2 + sum_m c_m cos(...): the distortion is then
    the RMS difference in dB of two spectral envelopes, smoothed to 13 terms, without the loudness c_0.
    Figures from other analyses (SPTK's mel-generalised cepstra, other filterbanks) are of the same kind, but
    not comparable in value. Frames are compared one to one, without time warping.
    """
    difference = _log_mel_difference(reference, estimate, sampling_rate)
    bands = difference.shape[0]
    order = torch.arange(1, _CEPSTRA + 1, dtype=torch.float64)
    place = torch.arange(bands, dtype=torch.float64) + 0.5
    cepstra = 2 / bands * torch.cos(math.pi / bands * torch.outer(order, place)) @ difference
    return float(cepstra.square().sum(dim=0).mul(2).sqrt().mean()) * _DB_PER_NEPER / 2


def stoi(reference: Tensor, estimate: Tensor, sampling_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1, by pystoi at 10 kHz.

    nan, with the reason logged, where the reference holds less than 0.4 s of speech.
    """
    try:
        from pystoi import stoi as measure
    except ModuleNotFoundError:
        raise missing_extra("pystoi", "metrics") from None

    x, y = _pair(reference, estimate, sampling_rate)
    if not x.any():
        return _undefined("STOI", "the reference is silent")
    with warnings.catch_warnings():
        # pystoi answers 1e-5 with a RuntimeWarning where it cannot measure; a number that is none must not be
        # averaged.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(measure(x.numpy(), y.numpy(), sampling_rate, extended=False))
        except RuntimeWarning:
            return _undefined("STOI", "the reference holds less than 0.4 s of speech")


def pesq(reference: Tensor, estimate: Tensor, sampling_rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2, MOS-LQO, 1.0 to 4.6) by the pesq package, at 16 kHz (resampled by soxr).

    Audio of more than 20 s is scored in equal parts of at most 20 s, and the scores are averaged. nan, with
    the reason logged, where PESQ finds no utterance or a signal is shorter than a quarter of a second.
    """
    try:
        from pesq import BufferTooShortError, NoUtterancesError
        from pesq import pesq as measure
    except ModuleNotFoundError:
        raise missing_extra("pesq", "metrics") from None

    x, y = (_resample(signal, sampling_rate, _PESQ_RATE) for signal in _pair(reference, estimate, sampling_rate))
    if not x.any() or not y.any():
        return _undefined("PESQ", "a signal is silent")
    parts = math.ceil(len(x) / (_PESQ_SECONDS * _PESQ_RATE))
    scores = []
    reason = ""
    for part_x, part_y in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        try:
            scores.append(float(measure(_PESQ_RATE, part_x.numpy(), part_y.numpy(), "wb")))
        except NoUtterancesError:
            reason = "no utterance found"
        except BufferTooShortError:
            reason = "less than a quarter of a second"
    return sum(scores) / len(scores) if scores else _undefined("PESQ", reason)


def f0_error(reference: Tensor, estimate: Tensor, sampling_rate: int) -> F0Error:
    """Difference of the fundamental frequencies, 60 to 600 Hz, as librosa's pYIN tracks them.

    Frames are 256 samples apart at 22,050 Hz. The RMSE is in cents (hundredths of a semitone) over the frames
    that are voiced in both signals, and the voicing error is the fraction of frames voiced in only one of
    them. Octave errors of the tracker count as they are.
    """
    x, y = (_resample(signal, sampling_rate, _RATE) for signal in _pair(reference, estimate, sampling_rate))
    f0_x, f0_y = _f0(x), _f0(y)
    voiced_x, voiced_y = f0_x.isfinite(), f0_y.isfinite()
    both = voiced_x & voiced_y
    voicing_error = float((voiced_x ^ voiced_y).double().mean())
    if not both.any():
        return F0Error(_undefined("the F0 error", "no frame is voiced in both signals"), voicing_error)
    cents = 1200 * torch.log2(f0_y[both] / f0_x[both])
    return F0Error(float(cents.square().mean().sqrt()), voicing_error)


def evaluate(reference: Tensor, estimate: Tensor, sampling_rate: int) -> dict[str, float]:
    """All metrics of this file: log_mel_distance (dB), mel_cepstral_distortion (dB), stoi, pesq (MOS-LQO),
    f0_rmse_cents and voicing_error (fraction). Higher is better for stoi and pesq, lower for the others.
    """
    log_mel = log_mel_distance(reference, estimate, sampling_rate)
    f0 = f0_error(reference, estimate, sampling_rate)
    return {
        "log_mel_distance": log_mel,
        "mel_cepstral_distortion": mel_cepstral_distortion(reference, estimate, sampling_rate),
        "stoi": stoi(reference, estimate, sampling_rate),
        "pesq": pesq(reference, estimate, sampling_rate),
        "f0_rmse_cents": f0.rmse_cents,
        "voicing_error": f0.voicing_error,
    }


def griffin_lim(mel: Tensor, n_iter: int = 60) -> Tensor:
    """Audio from a log-mel of `MelSpectrogram()` without a model, by librosa's mel inversion and Griffin-Lim.

    mel: [80, F], finite, F at least 5 (one window), on any device. Returns [256 * (F - 1)], float32, on the
    CPU, 22,050 Hz. The random phase it starts from is the same in every call.
    """
    import librosa

    if not isinstance(mel, Tensor) or not mel.is_floating_point():
        got = mel.dtype if isinstance(mel, Tensor) else type(mel).__name__
        raise AudioError(f"`mel` must be a floating-point tensor; got {got}")
    if mel.dim() != 2 or mel.shape[0] != 80 or mel.shape[1] < 5:
        raise AudioError(f"`mel` must be [80, F] with F at least 5; got {list(mel.shape)}")
    check_finite(mel, "`mel`")
    magnitude = librosa.feature.inverse.mel_to_stft(
        mel.detach().cpu().double().exp().numpy(), sr=_RATE, n_fft=_WINDOW, power=1.0, fmin=0.0, fmax=8000.0
    )
    audio = librosa.griffinlim(
        magnitude,
        n_iter=n_iter,
        hop_length=_HOP,
        win_length=_WINDOW,
        n_fft=_WINDOW,
        pad_mode="reflect",
        random_state=0,
    )
    return torch.from_numpy(audio).float()


def _pair(reference: Tensor, estimate: Tensor, sampling_rate: int) -> tuple[Tensor, Tensor]:
    """Both signals as float64 [T] on the CPU, equally long."""
    check_rate(sampling_rate)
    x, y = as_signal(reference, "`reference`"), as_signal(estimate, "`estimate`")
    allowed = _MAX_HOPS_APART * _HOP * sampling_rate // _RATE
    if abs(len(x) - len(y)) > allowed:
        raise AudioError(
            f"`estimate` must be as long as `reference` within {allowed} samples; got {len(y)} and {len(x)}"
        )
    length = min(len(x), len(y))
    least = math.ceil(_WINDOW * sampling_rate / _RATE)
    if length < least:
        raise AudioError(f"`reference` and `estimate` must have at least {least} samples; got {len(x)} and {len(y)}")
    return x[:length], y[:length]


def _resample(signal: Tensor, rate: int, target: int) -> Tensor:
    import soxr

    if rate == target:
        return signal
    return torch.from_numpy(soxr.resample(signal.numpy(), rate, target, quality="VHQ"))


def _log_mel_difference(reference: Tensor, estimate: Tensor, sampling_rate: int) -> Tensor:
    """[80, F], natural logarithm, float64."""
    x, y = (_resample(signal, sampling_rate, _RATE) for signal in _pair(reference, estimate, sampling_rate))
    log_mel = MelSpectrogram()(torch.stack([x, y]))
    difference: Tensor = log_mel[1] - log_mel[0]
    return difference


def _f0(signal: Tensor) -> Tensor:
    """[F], Hz, nan where unvoiced."""
    import librosa

    low, high = _F0_RANGE
    f0, _, _ = librosa.pyin(signal.numpy(), fmin=low, fmax=high, sr=_RATE, frame_length=_F0_FRAME, hop_length=_HOP)
    return torch.from_numpy(f0)


def _undefined(metric: str, reason: str) -> float:
    _log.warning("%s is not defined here: %s", metric, reason)
    return math.nan
