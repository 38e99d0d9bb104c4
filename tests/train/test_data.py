from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastflow.audio import MelSpectrogram, read_audio, write_audio
from fastflow.train import DataError, SegmentDataset, find_audio

from .conftest import tone


def test_sources_are_files_directories_and_patterns(speech: Path) -> None:
    low, high = speech / "low.flac", speech / "more" / "high.wav"
    assert find_audio([speech]) == [low, high]
    assert find_audio([low]) == [low]
    assert find_audio([str(speech / "**" / "*.wav")]) == [high]
    assert find_audio([low, speech]) == [low, low, high]


def test_a_source_without_audio_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file, directory or match"):
        find_audio([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no \.wav or \.flac file in it"):
        find_audio([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"`sources` must name at least one file.*; got none"):
        find_audio([])
    with pytest.raises(DataError, match=r"`sources` must be a list of .*; got 'speech'"):
        find_audio("speech")


def test_segments_are_cut_out_of_the_files_with_their_mel_frames(speech: Path) -> None:
    path = speech / "low.flac"
    data = SegmentDataset([path], segment=4096, dither=0.0)
    whole = read_audio(path)
    mel, audio = data.batch(0, 5)
    assert mel.shape == (5, 80, 17)
    assert audio.shape == (5, 4096)
    windows = whole.unfold(0, 4096, 256)
    own = MelSpectrogram()(audio)
    for i in range(5):
        assert (windows == audio[i]).all(1).any()
        # two frames at either edge reach beyond the segment; all others see its samples alone
        torch.testing.assert_close(mel[i, :, 2:-2], own[i, :, 2:-2], rtol=0, atol=1e-4)


def test_every_start_is_reached_and_none_beyond_the_end(speech: Path) -> None:
    path = speech / "more" / "high.wav"  # 11,025 samples: 43 whole hops
    data = SegmentDataset([path], segment=256 * 41, dither=0.0)
    whole = read_audio(path)
    _, audio = data.batch(0, 64)
    starts = {next(s for s in range(0, 513, 256) if torch.equal(whole[s : s + 256 * 41], row)) for row in audio}
    assert starts == {0, 256, 512}


def test_a_file_named_twice_is_drawn_twice_as_often(tmp_path: Path) -> None:
    for name, level in (("a.wav", 0.1), ("b.wav", 0.2)):
        write_audio(tmp_path / name, level * torch.ones(256 * 40), 22050)
    data = SegmentDataset([tmp_path, tmp_path / "a.wav"], segment=2048, dither=0.0)
    _, audio = data.batch(0, 3000)
    assert abs(float((audio[:, 0] < 0.15).float().mean()) - 2 / 3) < 0.04
    assert len(data.clips) == 3


def test_a_batch_depends_on_seed_and_number_alone(speech: Path, dataset: SegmentDataset) -> None:
    again = SegmentDataset([speech], segment=2048, seed=3)
    later = dataset.batch(7, 4)
    torch.rand(3)
    for a, b in zip(later, again.batch(7, 4), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(later[1], dataset.batch(8, 4)[1])
    assert not torch.equal(later[1], SegmentDataset([speech], segment=2048, seed=4).batch(7, 4)[1])


def test_other_rates_are_converted(tmp_path: Path) -> None:
    write_audio(tmp_path / "fast.wav", tone(0.5, 150.0), 44100)
    data = SegmentDataset([tmp_path], segment=2048)
    assert data.seconds == pytest.approx(0.25, abs=1e-3)


def test_bad_files_are_skipped_with_reasons(speech: Path) -> None:
    (speech / "broken.wav").write_bytes(b"RIFF no wav")
    write_audio(speech / "short.wav", torch.zeros(1000), 22050)
    data = SegmentDataset([speech], segment=2048)
    assert [clip.path.name for clip in data.clips] == ["low.flac", "high.wav"]
    reasons = {path.name: reason for path, reason in data.skipped}
    assert reasons.keys() == {"broken.wav", "short.wav"}
    assert "short.wav: 1000 samples, shorter than a segment of 2048" in reasons["short.wav"]
    assert "cannot read" in reasons["broken.wav"]


def test_nothing_usable_lists_every_file(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF no wav")
    write_audio(tmp_path / "short.wav", torch.zeros(1000), 22050)
    with pytest.raises(DataError, match=r"(?s)none of the 2 audio files can be used:.*broken\.wav.*short\.wav: 1000"):
        SegmentDataset([tmp_path], segment=2048)


@pytest.mark.parametrize("segment", [0, 255, 2000, -256])
def test_segment_must_fit_the_hop(speech: Path, segment: int) -> None:
    with pytest.raises(DataError, match=rf"`segment` must be a positive multiple of the hop, 256; got {segment}"):
        SegmentDataset([speech], segment=segment)


def test_seed_must_not_be_negative(speech: Path) -> None:
    with pytest.raises(DataError, match=r"`seed` must be 0 or more; got -1"):
        SegmentDataset([speech], seed=-1)
