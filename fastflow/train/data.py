"""Audio files to random training segments with their mel frames, all of it in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fastflow.audio import AudioError, MelSpectrogram, read_audio

AUDIO_SUFFIXES = frozenset({".wav", ".flac"})


class DataError(ValueError):
    """Nothing to learn from, or settings that do not fit the audio."""


def find_audio(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The audio files that `sources` names, sorted within each source.

    A source is a file, a directory (searched recursively for .wav and .flac) or a glob pattern. A source named twice
    gives its files twice, so that they are drawn twice as often. Raises DataError for a source that gives none.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise DataError(f"`sources` must be a list of files, directories or patterns; got {os.fspath(sources)!r}")
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            matches = [path]
        elif os.path.isdir(path):
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(p))
        else:
            names = glob.glob(os.fspath(source), recursive=True)
            matches = sorted(Path(name) for name in names if os.path.isfile(name))
        if not matches:
            reason = "no .wav or .flac file in it" if os.path.isdir(path) else "no such file, directory or match"
            raise DataError(f"{source}: {reason}")
        found += matches
    if not found:
        raise DataError("`sources` must name at least one file, directory or pattern; got none")
    return found


class SegmentDataset:
    """Random segments of audio with the mel frames that condition them.

    Files are read, and their mels computed, once, at construction. Frames are cut out of the whole file's mel, at the
    segment's own 256-sample grid: what the published Mel2Samp computes from the segment alone, but for the two frames
    at either edge, which here see the real neighbouring samples, as they do at inference, where Mel2Samp reflects.

    Which segments batch number n holds depends on `seed` and n alone, so training resumes anywhere without a saved
    random state. Every start position in every file is equally likely.

    sources: files, directories, glob patterns (see find_audio).
    segment: samples per segment, a multiple of hop_length.
    dither: standard deviation of the noise added to the audio of a batch, -74 dB of full scale by default. A flow's
        likelihood has no bound on digital silence: its scale grows until the first faint sample breaks the training.
    Attributes: `files` used (as often as named), `skipped` [(file, reason)], `seconds` of audio, `std` of its samples.

    Raises DataError if `segment` does not fit the hop, or no file can be used (with every file's reason).
    """

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        *,
        segment: int = 8192,
        seed: int = 0,
        dither: float = 2e-4,
        sampling_rate: int = 22050,
        hop_length: int = 256,
    ) -> None:
        if segment < hop_length or segment % hop_length != 0:
            raise DataError(f"`segment` must be a positive multiple of the hop, {hop_length}; got {segment}")
        if not 0 <= dither < 1:
            raise DataError(f"`dither` must be at least 0 and less than 1; got {dither}")
        if seed < 0:
            raise DataError(f"`seed` must be 0 or more; got {seed}")
        self.segment = segment
        self.seed = seed
        self.dither = dither
        self.sampling_rate = sampling_rate
        self.hop_length = hop_length
        self.files: list[Path] = []
        self.skipped: list[tuple[Path, str]] = []
        mel = MelSpectrogram(sampling_rate=sampling_rate, hop_length=hop_length)
        self._audio: list[Tensor] = []
        self._mel: list[Tensor] = []
        loaded: dict[Path, tuple[Tensor, Tensor]] = {}
        for path in find_audio(sources):
            try:
                if path not in loaded:
                    audio = read_audio(path, sampling_rate)
                    if len(audio) < segment:
                        raise AudioError(f"{path}: {len(audio)} samples, shorter than a segment of {segment}")
                    loaded[path] = audio, mel(audio)[0]
            except AudioError as error:
                self.skipped.append((path, str(error)))
                continue
            self.files.append(path)
            self._audio.append(loaded[path][0])
            self._mel.append(loaded[path][1])
        if not self.files:
            reasons = "\n  ".join(reason for _, reason in self.skipped)
            raise DataError(f"none of the {len(self.skipped)} audio files can be used:\n  {reasons}")
        # A file of n whole hops has n - segment/hop + 1 frame-aligned starts.
        starts = torch.tensor([(len(a) - segment) // hop_length + 1 for a in self._audio])
        self._ends = starts.cumsum(0)

    @property
    def seconds(self) -> float:
        """Seconds of audio, files that are named twice counted twice."""
        return sum(len(audio) for audio in self._audio) / self.sampling_rate

    @property
    def std(self) -> float:
        """Root mean square of all samples."""
        square = sum(float(audio.double().square().sum()) for audio in self._audio)
        return float((square / sum(len(audio) for audio in self._audio)) ** 0.5)

    @property
    def mel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (at least 0.1) of each mel band over all frames, [n_mels] each."""
        frames = torch.cat(self._mel, 1).double()
        return frames.mean(1).float(), frames.std(1).float().clamp(min=0.1)

    def deviation(self, basis: Tensor) -> Tensor:
        """Root mean square over all audio of the projections on each row of `basis`, [rows, samples] -> [rows].

        The audio is cut into stretches of `samples`; a row of nothing but silence counts as 1e-4.
        """
        total, count = torch.zeros(len(basis), dtype=torch.float64), 0
        for audio in self._audio:
            stretches = audio[: len(audio) // basis.shape[1] * basis.shape[1]].reshape(-1, basis.shape[1])
            total += (stretches @ basis.T).double().square().sum(0)
            count += len(stretches)
        return (total / max(count, 1)).sqrt().clamp(min=1e-4).float()

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch `number` of `size` segments: (mel [size, 80, segment/hop + 1], audio [size, segment]), float32."""
        generator = torch.Generator().manual_seed(_mix(self.seed, number))
        picks = torch.randint(int(self._ends[-1]), (size,), generator=generator)
        frames = self.segment // self.hop_length + 1
        mels, audios = [], []
        for pick, index in zip(picks.tolist(), torch.searchsorted(self._ends, picks, right=True).tolist(), strict=True):
            frame = pick - (int(self._ends[index - 1]) if index else 0)
            start = frame * self.hop_length
            mels.append(self._mel[index][:, frame : frame + frames])
            audios.append(self._audio[index][start : start + self.segment])
        audio = torch.stack(audios)
        return torch.stack(mels), audio + self.dither * torch.randn(audio.shape, generator=generator)


def _mix(seed: int, number: int) -> int:
    """One 64-bit generator seed for two numbers; other pairs give unrelated streams (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + number + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
