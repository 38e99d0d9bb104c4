"""Lists of files and manifests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastflow.audio import write_audio
from fastflow.train import DataError, SegmentDataset, find_clips, train
from fastflow.train.sources import Clip

from .conftest import tone
from .test_loop import fresh


def test_lists_name_files_relative_to_themselves(speech: Path) -> None:
    (speech / "train.txt").write_text("low.flac|a sentence\n\nmore/high.wav\n")
    assert find_clips([speech / "train.txt"]) == [Clip(speech / "low.flac"), Clip(speech / "more" / "high.wav")]


def manifest(name: str) -> str:
    return json.dumps({"sources": [{"type": "file", "source": name}], "duration": 1.0})


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_names_count_from_the_list_then_from_the_working_directory(
    speech: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    line = manifest if suffix == "jsonl" else str
    source = lists / f"train.{suffix}"
    source.write_text(line("low.flac") + "\n")
    monkeypatch.chdir(speech)
    assert find_clips([source]) == [Clip(Path("low.flac"))]
    (lists / "low.flac").write_bytes((speech / "more" / "high.wav").read_bytes())
    assert find_clips([source]) == [Clip(lists / "low.flac")]
    source.write_text(line("none.wav") + "\n")
    with pytest.raises(DataError, match=r"line 1: there is no file .*lists.none\.wav or .*none\.wav$"):
        find_clips([source])
    source.write_text(line(str(speech / "none.wav")) + "\n")
    with pytest.raises(DataError, match=r"line 1: there is no file (\S+none\.wav)(?! or \1$)"):
        find_clips([source])


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
    assert part.equal(whole[5512:16538])


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


def test_a_damaged_file_is_said_once_and_the_next_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, level in (("a.wav", 0.1), ("b.wav", 0.2)):
        write_audio(tmp_path / name, level * torch.ones(22050), 22050)
    data = SegmentDataset([tmp_path], segment=2048, dither=0.0)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20000])
    mel, audio = data.batch(0, 16)
    torch.testing.assert_close(audio, torch.full((16, 2048), 0.2), atol=1e-4, rtol=0)
    assert mel.isfinite().all()
    (record,) = caplog.records
    assert "left out: cannot read" in record.getMessage() and "a.wav: it is truncated" in record.getMessage()
    (tmp_path / "b.wav").unlink()
    data._kept.clear()
    with pytest.raises(DataError, match=r"(?s)none of the 2 clips can be read any more:.*a\.wav: .*b\.wav"):
        data.batch(1, 2)


def test_where_all_clips_turn_out_damaged_the_reasons_are_said(
    speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = SegmentDataset([speech], segment=2048)
    good = (speech / "low.flac").read_bytes()
    for clip in data.clips:
        clip.path.write_bytes(clip.path.read_bytes()[:5000])
    said = r"(?s)none of the 2 clips can be read any more:.*low\.flac: .*high\.wav: it is truncated"
    uses: list[Callable[[], object]] = [
        data.mel_statistics,
        lambda: data.deviation(torch.eye(8)),
        lambda: data.first(1.0),
        lambda: data.batch(0, 2),
        lambda: train(fresh(), data, tmp_path / "m.safetensors", steps=1),
    ]
    for use in uses:
        with pytest.raises(DataError, match=said):
            use()
    assert len(caplog.records) == 2

    (speech / "low.flac").write_bytes(good)
    other = SegmentDataset([speech / "low.flac"], segment=2048)
    torch.testing.assert_close(data.mel_statistics(), other.mel_statistics())
    assert data.first(0.1).equal(other.first(0.1))


def test_a_cut_up_to_the_end_fits_whatever_the_rates(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 110.0)[:16000], 16000)
    recording = {"sources": [{"type": "file", "source": "a.wav"}], "duration": 1.0}
    cuts = [{"start": k / 7, "duration": 1 - k / 7, "recording": recording} for k in range(6)]
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, cuts)))
    data = SegmentDataset([tmp_path / "cuts.jsonl"], segment=2048)
    assert len(data.clips) == 6 and not data.skipped


def test_only_recordings_of_one_channel_are_cut(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(1.0, 110.0), 22050)
    recording = {"sources": [{"type": "file", "source": "a.wav"}], "duration": 1.0, "channel_ids": [0, 1]}
    (tmp_path / "c.jsonl").write_text(json.dumps({"start": 0, "duration": 1, "channel": 1, "recording": recording}))
    with pytest.raises(DataError, match=r"line 1: it must be of the only channel of its recording"):
        find_clips([tmp_path / "c.jsonl"])


def test_a_pattern_names_audio_alone(tmp_path: Path) -> None:
    """A list that it meets by the way is left to be skipped: its clips are there already, or it is a transcript."""
    for name in ("a.wav", "a.normalized.txt", "metadata.csv"):
        (tmp_path / name).write_text("a|what is said\n")
    found = find_clips([str(tmp_path / "*")])
    assert sorted(clip.path.name for clip in found) == ["a.normalized.txt", "a.wav", "metadata.csv"]
