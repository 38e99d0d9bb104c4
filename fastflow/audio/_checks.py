"""Argument checks that several files of this package share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastflow.audio.errors import AudioError

# Rates beyond these are slips or broken headers; converting from 1 Hz would take 22,050 times the memory.
LOWEST_RATE = 1000
HIGHEST_RATE = 1_000_000


def minimum_samples(n_fft: int) -> int:
    """The shortest audio that can be padded by reflection: n_fft / 2 samples beside the one at the edge."""
    return n_fft // 2 + 1


def missing_extra(package: str, extra: str) -> ModuleNotFoundError:
    """The error for a third-party package that only an extra of this one installs."""
    return ModuleNotFoundError(f"this needs {package}: pip install 'fastflow[{extra}]'", name=package)


def check_rate(sampling_rate: int) -> None:
    is_int = isinstance(sampling_rate, int) and not isinstance(sampling_rate, bool)
    if not is_int or not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        raise AudioError(f"`sampling_rate` must be an int in {LOWEST_RATE}..{HIGHEST_RATE} Hz; got {sampling_rate!r}")


def check_finite(values: Tensor, what: str) -> None:
    """`what` opens the message: "`audio`" or "cannot read x.wav: its audio"."""
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count:
        # Not torch.nonzero: of a long signal of NaNs that would be a large tensor for one index.
        first = int(bad.reshape(-1).to(torch.uint8).argmax())
        index = [int(i) for i in torch.unravel_index(torch.tensor(first), values.shape)]
        place = index[0] if len(index) == 1 else index
        raise AudioError(
            f"{what} must be finite; {count} of {values.numel()} values are not, the first at index {place}"
        )


def check_audio(audio: Tensor, name: str) -> None:
    """Refuses all but a finite floating-point tensor [T] or [B, T], B at least 1."""
    if not isinstance(audio, Tensor):
        raise AudioError(f"`{name}` must be a tensor; got {type(audio).__name__}")
    if not audio.is_floating_point():
        raise AudioError(f"`{name}` must be floating point; got {audio.dtype}")
    if audio.dim() not in (1, 2) or (audio.dim() == 2 and audio.shape[0] == 0):
        raise AudioError(f"`{name}` must be [T] or [B, T] with B at least 1; got {list(audio.shape)}")
    check_finite(audio, f"`{name}`")


def as_signal(audio: Tensor, what: str) -> Tensor:
    """`audio`, which must be a finite floating-point tensor [T] or [1, T], as float64 [T] on the CPU."""
    if not isinstance(audio, Tensor):
        raise AudioError(f"{what} must be a tensor; got {type(audio).__name__}")
    if not audio.is_floating_point():
        raise AudioError(f"{what} must be floating point; got {audio.dtype}")
    if audio.dim() != 1 and not (audio.dim() == 2 and audio.shape[0] == 1):
        raise AudioError(f"{what} must be [T] or [1, T]; got {list(audio.shape)}")
    signal = audio.detach().reshape(-1).to(device="cpu", dtype=torch.float64)
    check_finite(signal, what)
    return signal
