"""Audio files in and out: any rate and channel count in, mono wav or flac out."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastflow.audio._checks import HIGHEST_RATE, LOWEST_RATE, as_signal, check_finite, check_rate
from fastflow.audio.errors import AudioError
from fastflow.files import check_target, write_whole

if TYPE_CHECKING:
    import soundfile

_BLOCK = 1 << 20
_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
_PCM_BITS = {"PCM_16": 16, "PCM_24": 24}
_SUBTYPES = {".wav": ("PCM_16", "PCM_24", "FLOAT"), ".flac": ("PCM_16", "PCM_24")}
# Programs that stream a wav cannot know its length and write a size near the top of the field instead.
_UNKNOWN_SIZE = 0x7FFF0000
# Those that stream a flac leave its length out; libsndfile then says 2**63 - 1 samples.
_IMPLAUSIBLE_FRAMES = 1 << 40


def read_audio(path: str | os.PathLike[str], sampling_rate: int = 22050) -> Tensor:
    """Reads an audio file as mono float32 at `sampling_rate` Hz.

    Every format libsndfile knows (wav, flac, ogg, mp3, aiff, ...) at any rate and with any number of
    channels: channels are averaged, then the rate is converted with soxr (VHQ).

    Returns: [T], float32, full scale +-1 (files of floats may exceed it).

    Raises AudioError naming the path and the reason: missing, a directory, empty, truncated, not audio, no
    samples, samples that are not finite.
    """
    import soundfile
    import soxr

    check_rate(sampling_rate)
    path = Path(path)
    data = _read_bytes(path)
    missing = _missing_wav_bytes(data)
    if missing:
        raise AudioError(f"cannot read {path}: it is truncated, {missing} bytes of samples are missing")
    if _is_ogg_without_end(data):
        raise AudioError(f"cannot read {path}: it is truncated, its last page does not end the stream")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, promised = file.samplerate, file.frames
            _check_length(path, promised)
            samples = _decode(file)
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot read {path}: it cannot be decoded as audio ({_reason(error)})") from error
    _check_file_rate(path, rate)
    if len(samples) < promised:
        raise AudioError(f"cannot read {path}: it is truncated, {len(samples)} of {promised} samples can be decoded")
    if len(samples) == 0:
        raise AudioError(f"cannot read {path}: it holds no samples")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    # Checked before resampling, which would spread one bad sample over its neighbours.
    check_finite(torch.from_numpy(mono), f"cannot read {path}: its audio")
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate, quality="VHQ")
        if len(mono) == 0:
            raise AudioError(f"cannot read {path}: {len(samples)} samples at {rate} Hz give none at {sampling_rate} Hz")
    return torch.from_numpy(mono.copy())


def audio_length(path: str | os.PathLike[str], sampling_rate: int = 22050) -> int:
    """How many samples `read_audio` gives at least, by the file's header alone.

    Raises AudioError naming the path and the reason: missing, a directory, empty, not audio, no samples, a header
    that does not say how many.
    """
    import soundfile

    check_rate(sampling_rate)
    path = Path(path)
    _check_file(path)
    try:
        header = soundfile.info(os.fspath(path))
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot read {path}: it cannot be decoded as audio ({_reason(error)})") from error
    rate = int(header.samplerate)
    _check_file_rate(path, rate)
    _check_length(path, header.frames)
    length = int(header.frames) * sampling_rate // rate
    if length == 0:
        raise AudioError(f"cannot read {path}: it holds no samples")
    return length


def write_audio(
    path: str | os.PathLike[str],
    audio: Tensor,
    sampling_rate: int,
    *,
    subtype: str = "PCM_16",
    overwrite: bool = False,
) -> float:
    """Writes mono audio as .wav or .flac (the suffix decides); the file appears whole or not at all.

    audio: [T] or [1, T], floating point, full scale +-1, on any device; T may be 0 for wav.

    subtype: "PCM_16" or "PCM_24", or for wav "FLOAT" (32 bit, unclipped). Integers are rounded to the nearest
    step of 2**-15 or 2**-23, so audio read from such a file is written back bit for bit.

    overwrite: replace an existing file; without it an existing target is an error, also one that appears
    while this runs.

    Returns: the fraction of samples beyond +-1, which were clipped (always 0.0 for "FLOAT").

    Raises AudioError naming the path or the argument and the reason.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise AudioError(f"cannot write {path}: the name must end in .wav or .flac; got {path.suffix!r}")
    if subtype not in _SUBTYPES[suffix]:
        raise AudioError(f"`subtype` must be one of {', '.join(_SUBTYPES[suffix])} for {suffix}; got {subtype!r}")
    check_rate(sampling_rate)
    signal = as_signal(audio, f"cannot write {path}: `audio`")
    if len(signal) == 0 and suffix == ".flac":
        raise AudioError(f"cannot write {path}: a flac file without samples cannot be read back")
    check_target(path, overwrite=overwrite, error=AudioError)
    encoded, clipped = _encode(signal, sampling_rate, _FORMATS[suffix], subtype, path)
    with write_whole(path, overwrite=overwrite, error=AudioError) as temporary:
        temporary.write_bytes(encoded)
    return clipped


def _check_file(path: Path) -> None:
    """Raises AudioError for what has no bytes to read."""
    if path.is_dir():
        raise AudioError(f"cannot read {path}: it is a directory")
    try:
        if os.stat(path).st_size == 0:
            raise AudioError(f"cannot read {path}: the file is empty")
    except FileNotFoundError:
        raise AudioError(f"cannot read {path}: no such file") from None
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror or error}") from error


def _check_length(path: Path, frames: int) -> None:
    if frames >= _IMPLAUSIBLE_FRAMES:
        raise AudioError(f"cannot read {path}: its header does not say how long it is")


def _check_file_rate(path: Path, rate: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(f"cannot read {path}: its sampling rate, {rate} Hz, is none of audio")


def _read_bytes(path: Path) -> bytes:
    _check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror or error}") from error


def _decode(file: soundfile.SoundFile) -> np.ndarray:
    """All samples, [T, channels]. In blocks: a broken header may promise more than there is memory."""
    blocks = [np.empty((0, file.channels), dtype=np.float32)]
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        if len(block) == 0:
            return np.concatenate(blocks)
        blocks.append(block)


def _reason(error: soundfile.SoundFileError) -> str:
    """libsndfile's own words, without the object they are about, which is a buffer in memory here."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")


def _missing_wav_bytes(data: bytes) -> int:
    """How many bytes a wav's data chunk lacks of the size in its header; libsndfile would not tell."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    start = 12
    while start + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, start)
        if name == b"data":
            return 0 if size >= _UNKNOWN_SIZE else max(0, start + 8 + size - len(data))
        start += 8 + size + size % 2
    return 0


def _is_ogg_without_end(data: bytes) -> bool:
    """Whether an ogg stream's last page lacks the end-of-stream flag; libsndfile reads what there is."""
    if data[:4] != b"OggS":
        return False
    flags = data.rindex(b"OggS") + 5  # after the capture pattern and the version
    return flags >= len(data) or not data[flags] & 4


def _encode(signal: Tensor, sampling_rate: int, format: str, subtype: str, path: Path) -> tuple[bytes, float]:
    """The complete file as bytes, in memory: an encoder that fails leaves nothing on disc."""
    import soundfile

    clipped = 0.0
    if subtype == "FLOAT":
        samples = signal.float()
        check_finite(samples, f"cannot write {path}: `audio` in float32")
    else:
        # Rounded here, since libsndfile's own conversion truncates and scales by 2**15 - 1 one way and 2**15
        # the other.
        bits = _PCM_BITS[subtype]
        top = 2 ** (bits - 1)
        if len(signal):
            clipped = float((signal.abs() > 1).double().mean())
        steps = torch.round(signal * top).clamp(-top, top - 1).to(torch.int32)
        samples = steps.to(torch.int16) if bits == 16 else steps * 2 ** (32 - bits)
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, samples.numpy(), sampling_rate, format=format, subtype=subtype)
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot write {path}: {_reason(error)} ({subtype}, {sampling_rate} Hz)") from error
    return buffer.getvalue(), clipped
