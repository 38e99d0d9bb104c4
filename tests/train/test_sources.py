"""Lists of files and manifests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fastflow.audio import write_audio
from fastflow.train import DataError, SegmentDataset, find_clips
from fastflow.train.sources import Clip

from .conftest import tone


def test_lists_name_files_relative_to_themselves(speech: Path) -> None:
    (speech / "train.txt").write_text("low.flac|a sentence\n\nmore/high.wav\n")
    assert find_clips([speech / "train.txt"]) == [Clip(speech / "low.flac"), Clip(speech / "more" / "high.wav")]


def test_the_layout_of_lj_speech(speech: Path) -> None:
    (speech / "wavs").mkdir()
    (speech / "more" / "high.wav").rename(speech / "wavs" / "LJ001-0001.wav")
    (speech / "metadata.csv").write_text("LJ001-0001|Printing, in|Printing, in\n")
    assert find_clips([speech / "metadata.csv"]) == [Clip(speech / "wavs" / "LJ001-0001.wav")]


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_recordings_and_cuts(speech: Path, name: str) -> None:
    recording = {
        "id": "a",
        "sources": [{"type": "file", "channels": [0], "source": "low.flac"}],
        "sampling_rate": 22050,
        "num_samples": 22050,
        "duration": 1.0,
    }
    cut = {"id": "b", "start": 0.25, "duration": 0.5, "channel": 0, "recording": recording, "type": "MonoCut"}
    text = "".join(json.dumps(item) + "\n" for item in (recording, cut))
    opener = gzip.open if name.endswith("gz") else open
    with opener(speech / name, "wt", encoding="utf-8") as file:
        file.write(text)
    clips = find_clips([speech / name])
    assert clips == [Clip(speech / "low.flac"), Clip(speech / "low.flac", 0.25, 0.5)]
    data = SegmentDataset([speech / name], segment=2048, dither=0.0)
    assert data.seconds == pytest.approx(1.5, abs=1e-3)
    whole, part = (data._audio(clip) for clip in clips)
    assert part.equal(whole[5512 : 5512 + 11025])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "low.flac\nmissing.wav\n", r"a\.txt, line 2: there is no file .*missing\.wav"),
        ("a.txt", "\n", r"a\.txt: it names no audio file"),
        ("a.jsonl", "{}\n", r"a\.jsonl, line 1: it is no recording or cut of lhotse .*KeyError: 'sources'"),
        ("a.jsonl", "nothing\n", r"a\.jsonl, line 1: it is no recording or cut of lhotse .*JSONDecodeError"),
        (
            "a.jsonl",
            json.dumps({"sources": [{"type": "url", "source": "x"}], "duration": 1}),
            r"line 1: its source must be of type 'file'; got 'url'",
        ),
        (
            "a.jsonl",
            json.dumps({"sources": [{"type": "file", "source": "x.wav"}], "duration": 1}),
            r"line 1: there is no file .*x\.wav",
        ),
        ("a.jsonl.gz", "not compressed", r"a\.jsonl\.gz: it cannot be read as text"),
    ],
)
def test_lists_that_do_not_fit(speech: Path, name: str, text: str, message: str) -> None:
    (speech / name).write_text(text)
    with pytest.raises(DataError, match=message):
        find_clips([speech / name])


def test_a_cut_beyond_its_file_is_skipped_with_the_reason(speech: Path) -> None:
    recording = {"sources": [{"type": "file", "source": "low.flac"}], "duration": 1.0}
    lines = [{"start": 0.5, "duration": 2.0, "recording": recording}, recording]
    (speech / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = SegmentDataset([speech / "c.jsonl"], segment=2048)
    assert len(data.clips) == 1
    assert "22050 samples, less than a cut up to 55125 needs" in data.skipped[0][1]


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 110.0), 22050)
    data = SegmentDataset([tmp_path], segment=2048)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"cannot read .*a\.wav"):
        data.batch(0, 1)
