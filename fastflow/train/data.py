"""Audio files to random training segments with their mel frames, read when they are drawn."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastflow.audio import AudioError, MelSpectrogram, audio_length, read_audio

from .seeds import mix
from .sources import Clip, DataError, find_clips, fingerprint

log = logging.getLogger("fastflow")

KEPT_BYTES = 1 << 30
"""Decoded audio that a process keeps: all of a corpus of 3 hours; of larger ones, what was drawn last."""
SURVEYED_SECONDS = 1800.0
"""Audio that statistics are taken of, evenly spread over the clips."""


class SegmentDataset:
    """Random segments of audio with the mel frames that condition them.

    Only the files' headers are read at construction. A file is decoded when a segment of it is drawn, the mel frames
    are computed from its samples around the segment: what the whole file's mel has there. The published Mel2Samp
    computes them from the segment alone, where two frames at either edge see reflected samples, which they never do at
    inference. A file that turns out to be damaged is warned of once, and the next clip takes its place.

    Which segments batch number n holds depends on `seed` and n alone, so training resumes anywhere without a saved
    random state, and any process can make any batch. Every start position in every clip is equally likely.

    sources: files, directories, glob patterns, lists, manifests (see find_clips).
    segment: samples per segment, a multiple of the hop.
    dither: standard deviation of the noise added to the audio of a batch, -74 dB of full scale by default. A flow's
        likelihood has no bound on digital silence: its scale grows until the first faint sample breaks the training.
    mel: the front end, whose rate and hop hold for the audio; None for WaveGlow's.
    Attributes: `clips` used (as often as named), `skipped` [(file, reason)], `seconds` of audio.

    Raises DataError if `segment` does not fit the hop, or no file can be used (with every file's reason).
    """

    unit = "samples"

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        *,
        segment: int = 8192,
        seed: int = 0,
        dither: float = 2e-4,
        mel: MelSpectrogram | None = None,
    ) -> None:
        self.mel = MelSpectrogram() if mel is None else mel
        self.sampling_rate, self.hop_length = self.mel.sampling_rate, self.mel.hop_length
        if segment < self.hop_length or segment % self.hop_length != 0:
            raise DataError(f"`segment` must be a positive multiple of the hop, {self.hop_length}; got {segment}")
        if not 0 <= dither < 1:
            raise DataError(f"`dither` must be at least 0 and less than 1; got {dither}")
        if seed < 0:
            raise DataError(f"`seed` must be 0 or more; got {seed}")
        self.segment = self.units = segment
        self.seed = seed
        self.dither = dither
        self.clips: list[Clip] = []
        self.skipped: list[tuple[Path, str]] = []
        lengths: list[int] = []
        for clip in find_clips(sources):
            try:
                length = self._length(clip)
            except AudioError as error:
                self.skipped.append((clip.path, str(error)))
                continue
            self.clips.append(clip)
            lengths.append(length)
        if not self.clips:
            reasons = "\n  ".join(reason for _, reason in self.skipped)
            raise DataError(f"none of the {len(self.skipped)} audio files can be used:\n  {reasons}")
        self.seconds = sum(lengths) / self.sampling_rate
        # names without their folders, so that data may be moved
        mark = fingerprint((c.path.name, c.start, n) for c, n in zip(self.clips, lengths, strict=True))
        self._data = f"{len(self.clips)} clips of {sum(lengths)} samples ({mark})"
        # A clip of n whole hops has n - segment/hop + 1 frame-aligned starts.
        self._ends = ((torch.tensor(lengths) - segment) // self.hop_length + 1).cumsum(0)
        self._kept: OrderedDict[Clip, Tensor] = OrderedDict()
        self._kept_bytes = 0
        self._damaged: dict[Path, str] = {}

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        """Batch `number` of `size` segments: (mel [size, 80, segment/hop + 1], audio [size, segment]), float32.

        `share` (i, n) gives every n-th segment of it from the i-th on: the part of process i of n.

        Raises DataError if no clip can be decoded.
        """
        generator = torch.Generator().manual_seed(mix(self.seed, number))
        picks = torch.randint(int(self._ends[-1]), (size,), generator=generator)
        noise = torch.randn(size, self.segment, generator=generator)
        first, step = share
        indices = torch.searchsorted(self._ends, picks, right=True).tolist()
        cut = [
            self._cut_or_next(index, pick - (int(self._ends[index - 1]) if index else 0))
            for pick, index in zip(picks.tolist()[first::step], indices[first::step], strict=True)
        ]
        return torch.stack([mel for mel, _ in cut]), torch.stack([a for _, a in cut]) + self.dither * noise[first::step]

    def options(self) -> dict[str, Any]:
        """What a resumed run should have in common with its beginning."""
        return {"segment": self.segment, "seed": self.seed, "dither": self.dither, "data": self._data}

    def facts(self) -> dict[str, Any]:
        """What a run's facts say of its data."""
        return {
            "sources": sorted({"/".join(clip.path.parts[-3:-1]) for clip in self.clips}),
            "files": len(self.clips),
            "skipped_files": len(self.skipped),
            "minutes": round(self.seconds / 60, 2),
        }

    def summary(self) -> str:
        """How much there is of it, in words."""
        return f"{self.seconds / 60:.1f} minutes in {len(self.clips)} clips"

    def first(self, seconds: float) -> Tensor:
        """The beginning of the first clip that can be read, [T]."""
        return next(self._readable(self.clips))[: round(seconds * self.sampling_rate)]

    def mel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (at least 0.1) of each mel band over the surveyed frames, [n_mels] each.

        Raises DataError if none of the surveyed clips can be decoded.
        """
        frames = torch.cat([self.mel.frames(audio[None])[0] for audio in self._surveyed()], 1)
        return frames.mean(1).float(), frames.std(1).float().clamp(min=0.1)

    def deviation(self, basis: Tensor) -> Tensor:
        """Root mean square over the surveyed audio of the projections on each row of `basis`, [rows, n] -> [rows].

        The audio is cut into stretches of n samples; a row of nothing but silence counts as 1e-4.
        Raises DataError if none of the surveyed clips can be decoded.
        """
        total, count = torch.zeros(len(basis), dtype=torch.float64), 0
        for audio in self._surveyed():
            stretches = audio[: len(audio) // basis.shape[1] * basis.shape[1]].reshape(-1, basis.shape[1])
            total += (stretches @ basis.T).double().square().sum(0)
            count += len(stretches)
        return (total / max(count, 1)).sqrt().clamp(min=1e-4).float()

    def _surveyed(self) -> Iterator[Tensor]:
        """The audio of every clip, or of evenly spaced ones where all would be too much."""
        return self._readable(self.clips[:: max(1, round(self.seconds / SURVEYED_SECONDS))])

    def _readable(self, clips: list[Clip]) -> Iterator[Tensor]:
        """The audio of those clips that can be read; DataError where there are none."""
        found = False
        for clip in clips:
            try:
                audio = self._audio(clip)
            except AudioError as error:
                self._leave_out(clip, error)
                continue
            found = True
            yield audio
        if not found:
            raise self._nothing_left(len(clips))

    def _leave_out(self, clip: Clip, error: AudioError) -> None:
        """Warn of a damaged file, once."""
        if clip.path not in self._damaged:
            self._damaged[clip.path] = str(error)
            log.warning("left out: %s", error)

    def _nothing_left(self, tried: int) -> DataError:
        reasons = "\n  ".join(self._damaged.values())
        return DataError(f"none of the {tried} clips can be read any more:\n  {reasons}")

    def _length(self, clip: Clip) -> int:
        """The samples that a clip has at least, by its file's header; AudioError where it cannot be used."""
        whole = audio_length(clip.path, self.sampling_rate)
        start, stop = self._stretch(clip, whole)
        if stop > whole:
            raise AudioError(f"{clip.path}: {whole} samples, less than a cut up to {stop} needs")
        length = stop - start
        least = max(self.segment, self.mel.n_fft // 2 + 1)  # less cannot be padded by reflection
        if length < least:
            raise AudioError(f"{clip.path}: {length} samples, shorter than a segment of {least}")
        return length

    def _stretch(self, clip: Clip, whole: int) -> tuple[int, int]:
        """Where a clip begins and ends, in samples of its file."""
        start = round(clip.start * self.sampling_rate)
        if clip.duration is None:
            return start, whole
        stop = round((clip.start + clip.duration) * self.sampling_rate)
        return start, whole if stop == whole + 1 else stop  # a cut up to the end, rounded at another rate

    def _audio(self, clip: Clip) -> Tensor:
        """A clip's samples at the level that the front end wants, decoded or kept."""
        audio = self._kept.pop(clip, None)
        if audio is None:
            audio = read_audio(clip.path, self.sampling_rate)
            start, stop = self._stretch(clip, len(audio))
            # of its own memory: a view would keep the whole file
            audio = self.mel.levelled(audio[None, start:stop].double())[0].float().clone()
            self._kept_bytes += audio.nbytes
        self._kept[clip] = audio
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return audio

    def _cut_or_next(self, index: int, frame: int) -> tuple[Tensor, Tensor]:
        """`_cut`, or of the first clip after it that can be read: then from its beginning."""
        for i in range(len(self.clips)):
            at = (index + i) % len(self.clips)
            try:
                return self._cut(at, 0 if i else frame)
            except AudioError as error:
                self._leave_out(self.clips[at], error)
        raise self._nothing_left(len(self.clips))

    def _cut(self, index: int, frame: int) -> tuple[Tensor, Tensor]:
        """The segment of a clip that begins at mel frame `frame`: (mel [80, segment/hop + 1], audio [segment])."""
        clip = self.clips[index]
        audio = self._audio(clip)
        hop, frames = self.hop_length, self.segment // self.hop_length + 1
        start, lead = frame * hop, self.mel.lead(len(audio))
        # the whole hops that a frame's window reaches beyond its centre; at the clip's own ends it is reflected
        margin = -(-self.mel.n_fft // 2 // hop)
        first = max(0, frame - margin)
        around = audio[first * hop : start + self.segment + margin * hop]
        mel = self.mel.frames(around[None])[0, :, frame - first : frame - first + frames].float()
        segment = audio[max(0, start - lead) : start - lead + self.segment]
        segment = F.pad(segment, (max(0, lead - start), 0))
        if mel.shape[1] != frames or len(segment) != self.segment:
            raise AudioError(f"{clip.path}: it is shorter than its header says")
        return mel, segment
