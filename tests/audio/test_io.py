"""Files in and out: values, formats, messages, and that a file appears whole or not at all."""

from __future__ import annotations

import builtins
import errno
import os
import pathlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fastflow.audio import AudioError, audio_length, io, read_audio, write_audio

RATE = 22050


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, 5000)).float()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trips


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2.0**-15), ("PCM_24", 2.0**-23)])
def test_integer_round_trip(tmp_path, noise, suffix, subtype, step):
    path = tmp_path / f"x{suffix}"
    assert write_audio(path, noise, RATE, subtype=subtype) == 0
    assert soundfile.info(path).subtype == subtype
    back = read_audio(path)
    assert back.dtype == torch.float32
    assert back.shape == noise.shape
    # Half a step, and one step at +1, which the integers do not reach.
    assert (back - noise).abs().max() <= step * (0.5 + 1e-3)

    again = tmp_path / f"again{suffix}"
    write_audio(again, back, RATE, subtype=subtype)
    assert torch.equal(read_audio(again), back)


def test_float_round_trip_is_exact_and_unclipped(tmp_path, noise):
    assert write_audio(tmp_path / "x.wav", 3 * noise, RATE, subtype="FLOAT") == 0
    assert soundfile.info(tmp_path / "x.wav").subtype == "FLOAT"
    assert torch.equal(read_audio(tmp_path / "x.wav"), 3 * noise)


def test_clipping_is_reported_and_does_not_wrap(tmp_path):
    audio = torch.tensor([0.0, 1.0, 1.5, -1.0, -7.0, 0.25, 0.0, 0.0])
    for subtype, step in (("PCM_16", 2.0**-15), ("PCM_24", 2.0**-23)):
        path = tmp_path / f"{subtype}.wav"
        assert write_audio(path, audio, RATE, subtype=subtype) == 2 / 8
        expected = torch.tensor([0.0, 1 - step, 1 - step, -1.0, -1.0, 0.25, 0.0, 0.0])
        assert torch.equal(read_audio(path), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_and_both_shapes_are_written(tmp_path, noise, dtype):
    audio = noise.to(dtype).requires_grad_()
    write_audio(tmp_path / "flat.wav", audio, RATE, subtype="FLOAT")
    write_audio(tmp_path / "row.wav", audio.unsqueeze(0), RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "flat.wav"), audio.detach().float())
    assert torch.equal(read_audio(tmp_path / "row.wav"), audio.detach().float())


def test_strided_audio(tmp_path, noise):
    write_audio(tmp_path / "x.wav", noise[::3], RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "x.wav"), noise[::3])


def test_empty_audio_is_a_valid_wav(tmp_path):
    assert write_audio(tmp_path / "x.wav", torch.zeros(1, 0), RATE) == 0
    assert soundfile.info(tmp_path / "x.wav").frames == 0


# Rates and channels


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_resampling_keeps_a_tone(tmp_path, rate):
    """A 440 Hz tone comes back as the same tone at the new rate, in place and in level."""
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate, "FLOAT")
    audio = read_audio(tmp_path / "x.wav", RATE)
    assert audio.shape == (RATE,)
    tone = torch.from_numpy(0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE))
    inner = slice(RATE // 10, -RATE // 10)  # the edges ring: the tone begins and ends abruptly there
    assert (audio - tone)[inner].abs().max() < 1e-6


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 7000 * np.arange(48000) / 48000), 48000, "FLOAT")
    assert read_audio(tmp_path / "x.wav", 8000)[800:-800].abs().max() < 1e-4


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(tmp_path, channels):
    samples = np.random.default_rng(2).uniform(-1, 1, (3000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, RATE, "FLOAT")
    expected = torch.from_numpy(samples.astype(np.float64).mean(axis=1)).float()
    torch.testing.assert_close(read_audio(tmp_path / "x.wav"), expected, rtol=0, atol=1e-6)


def test_other_formats_and_str_paths(tmp_path, noise):
    soundfile.write(tmp_path / "x.ogg", 0.1 * noise.numpy(), RATE)
    soundfile.write(tmp_path / "x.aiff", noise.numpy(), RATE, "PCM_16")
    assert read_audio(str(tmp_path / "x.ogg")).shape == noise.shape
    assert (read_audio(str(tmp_path / "x.aiff")) - noise).abs().max() < 2**-14


def test_streamed_wav_of_unknown_length_is_read(tmp_path, noise):
    """Programs that write a wav to a pipe leave a size near the top of its field in the header."""
    write_audio(tmp_path / "x.wav", noise, RATE)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    at = data.index(b"data") + 4
    for size in (0xFFFFFFFF, 0x7FFFF000):
        data[at : at + 4] = struct.pack("<I", size)
        (tmp_path / "stream.wav").write_bytes(data)
        assert torch.equal(read_audio(tmp_path / "stream.wav"), read_audio(tmp_path / "x.wav"))


# What cannot be read


def refuses_to_read(path: Path, reason: str) -> None:
    with pytest.raises(AudioError) as info:
        read_audio(path)
    assert str(info.value) == f"cannot read {path}: {reason}"


def test_missing_file(tmp_path):
    refuses_to_read(tmp_path / "x.wav", "no such file")


def test_directory(tmp_path):
    refuses_to_read(tmp_path, "it is a directory")


def test_empty_file(tmp_path):
    (tmp_path / "x.wav").touch()
    refuses_to_read(tmp_path / "x.wav", "the file is empty")


def test_file_without_permission(tmp_path, monkeypatch):
    (tmp_path / "x.wav").write_bytes(b"RIFF")

    # Mode bits do not stop root, as whom these tests may run.
    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    refuses_to_read(tmp_path / "x.wav", "Permission denied")


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.txt", "x.raw", "x"])
def test_not_audio(tmp_path, name):
    (tmp_path / name).write_bytes(b"This is text and not audio.\n" * 100)
    refuses_to_read(tmp_path / name, "it cannot be decoded as audio (Format not recognised)")


def test_wav_truncated_in_its_samples(tmp_path, noise):
    write_audio(tmp_path / "x.wav", noise, RATE)
    data = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:-1234])
    refuses_to_read(tmp_path / "cut.wav", "it is truncated, 1234 bytes of samples are missing")


def test_wav_truncated_in_its_header(tmp_path, noise):
    write_audio(tmp_path / "x.wav", noise, RATE)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "x.wav").read_bytes()[:30])
    with pytest.raises(AudioError, match=r"cut\.wav: it cannot be decoded as audio \("):
        read_audio(tmp_path / "cut.wav")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_flac_truncated(tmp_path, noise, kept):
    write_audio(tmp_path / "x.flac", noise.repeat(10), RATE)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(AudioError, match=r"cut\.flac: it (cannot be decoded as audio \(|is truncated, )"):
        read_audio(tmp_path / "cut.flac")


def test_flac_of_unknown_length(tmp_path, noise):
    path = tmp_path / "x.flac"
    write_audio(path, noise, RATE)
    data = bytearray(path.read_bytes())
    assert audio_length(path, RATE) == int.from_bytes(data[22:26], "big") == 5000
    data[21] &= 0xF0  # the 36 bits from here on are STREAMINFO's total samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for read in (audio_length, read_audio):
        with pytest.raises(AudioError, match=r"x\.flac: its header does not say how long it is$"):
            read(path)


def test_flac_cut_between_two_blocks(tmp_path, noise, monkeypatch):
    """The decoder may end quietly there; the header's count then tells."""

    def all_but_ten(file: soundfile.SoundFile) -> np.ndarray:
        return file.read(4990, dtype="float32", always_2d=True)

    write_audio(tmp_path / "x.flac", noise, RATE)
    monkeypatch.setattr(io, "_decode", all_but_ten)
    refuses_to_read(tmp_path / "x.flac", "it is truncated, 4990 of 5000 samples can be decoded")


def test_no_samples(tmp_path):
    write_audio(tmp_path / "x.wav", torch.zeros(0), RATE)
    refuses_to_read(tmp_path / "x.wav", "it holds no samples")


def test_too_few_samples_for_the_rate(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(1), 96000)
    with pytest.raises(AudioError, match=r"x\.wav: 1 samples at 96000 Hz give none at 8000 Hz"):
        read_audio(tmp_path / "x.wav", 8000)


def test_impossible_rate_in_the_header(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(100), 1)
    refuses_to_read(tmp_path / "x.wav", "its sampling rate, 1 Hz, is none of audio")


def test_samples_that_are_not_finite(tmp_path):
    samples = np.zeros(1000, dtype=np.float32)
    samples[[123, 400]] = np.nan
    samples[500] = -np.inf
    soundfile.write(tmp_path / "x.wav", samples, 16000, "FLOAT")
    refuses_to_read(tmp_path / "x.wav", "its audio must be finite; 3 of 1000 values are not, the first at index 123")


@pytest.mark.parametrize("rate", [0, -1, 999, 1_000_001, 22050.0, True, "22050"])
def test_sampling_rate_argument(tmp_path, noise, rate):
    message = rf"^`sampling_rate` must be an int in 1000\.\.1000000 Hz; got {rate!r}$"
    write_audio(tmp_path / "x.wav", noise, RATE)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "x.wav", rate)
    with pytest.raises(AudioError, match=message):
        write_audio(tmp_path / "y.wav", noise, rate)
    assert files_in(tmp_path) == ["x.wav"]


# What cannot be written


def refuses_to_write(path: Path, audio: torch.Tensor, reason: str, **kwargs: object) -> None:
    with pytest.raises(AudioError) as info:
        write_audio(path, audio, RATE, **kwargs)
    assert str(info.value) == f"cannot write {path}: {reason}"


def test_existing_target_is_kept(tmp_path, noise):
    path = tmp_path / "x.wav"
    path.write_bytes(b"mine")
    refuses_to_write(path, noise, "it already exists (overwrite=True replaces it)")
    assert path.read_bytes() == b"mine"
    assert files_in(tmp_path) == ["x.wav"]
    write_audio(path, noise, RATE, overwrite=True)
    assert len(read_audio(path)) == len(noise)
    assert files_in(tmp_path) == ["x.wav"]


def test_dangling_link_counts_as_existing(tmp_path, noise):
    (tmp_path / "x.wav").symlink_to(tmp_path / "nowhere.wav")
    refuses_to_write(tmp_path / "x.wav", noise, "it already exists (overwrite=True replaces it)")
    assert files_in(tmp_path) == ["x.wav"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_target_is_a_directory(tmp_path, noise, overwrite):
    (tmp_path / "x.wav").mkdir()
    refuses_to_write(tmp_path / "x.wav", noise, "it is a directory", overwrite=overwrite)
    assert files_in(tmp_path) == ["x.wav"]


def test_parent_is_missing(tmp_path, noise):
    refuses_to_write(tmp_path / "no" / "x.wav", noise, f"the directory {tmp_path / 'no'} does not exist")
    assert files_in(tmp_path) == []


def test_parent_is_a_file(tmp_path, noise):
    (tmp_path / "file").touch()
    refuses_to_write(tmp_path / "file" / "x.wav", noise, f"{tmp_path / 'file'} is not a directory")


@pytest.mark.parametrize("name", ["x.mp3", "x", "x.wav.tmp"])
def test_unknown_suffix(tmp_path, noise, name):
    suffix = Path(name).suffix
    refuses_to_write(tmp_path / name, noise, f"the name must end in .wav or .flac; got {suffix!r}")
    assert files_in(tmp_path) == []


def test_subtypes(tmp_path, noise):
    with pytest.raises(AudioError, match=r"^`subtype` must be one of PCM_16, PCM_24 for \.flac; got 'FLOAT'$"):
        write_audio(tmp_path / "x.flac", noise, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"one of PCM_16, PCM_24, FLOAT for \.wav; got 'PCM_8'$"):
        write_audio(tmp_path / "x.wav", noise, RATE, subtype="PCM_8")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_audio_that_is_not_finite(tmp_path, noise, subtype):
    noise[[7, 70]] = torch.tensor([torch.inf, torch.nan])
    reason = "`audio` must be finite; 2 of 5000 values are not, the first at index 7"
    refuses_to_write(tmp_path / "x.wav", noise, reason, subtype=subtype)
    assert files_in(tmp_path) == []


def test_audio_beyond_float32(tmp_path):
    audio = torch.tensor([0.0, 1e300], dtype=torch.float64)
    reason = "`audio` in float32 must be finite; 1 of 2 values are not, the first at index 1"
    refuses_to_write(tmp_path / "x.wav", audio, reason, subtype="FLOAT")


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (torch.zeros(2, 10), r"`audio` must be \[T\] or \[1, T\]; got \[2, 10\]"),
        (torch.zeros(1, 1, 10), r"`audio` must be \[T\] or \[1, T\]; got \[1, 1, 10\]"),
        (torch.zeros(()), r"`audio` must be \[T\] or \[1, T\]; got \[\]"),
        (torch.zeros(10, dtype=torch.int16), "`audio` must be floating point; got torch.int16"),
        (torch.zeros(10, dtype=torch.complex64), "`audio` must be floating point; got torch.complex64"),
        (np.zeros(10), "`audio` must be a tensor; got ndarray"),
    ],
)
def test_audio_of_the_wrong_kind(tmp_path, audio, reason):
    with pytest.raises(AudioError, match=reason):
        write_audio(tmp_path / "x.wav", audio, RATE)
    assert files_in(tmp_path) == []


def test_empty_flac(tmp_path):
    refuses_to_write(tmp_path / "x.flac", torch.zeros(0), "a flac file without samples cannot be read back")


def test_rate_that_the_format_does_not_hold(tmp_path, noise):
    with pytest.raises(AudioError, match=r"x\.flac: .+ \(PCM_16, 700000 Hz\)$"):
        write_audio(tmp_path / "x.flac", noise, 700_000)
    assert files_in(tmp_path) == []


# Whole or not at all


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disc_leaves_nothing_new(tmp_path, noise, monkeypatch, overwrite):
    """A write that fails half way: no temporary file, no target, an old target untouched."""
    path = tmp_path / "x.wav"
    if overwrite:
        path.write_bytes(b"old")

    def write_on_a_full_disc(target, data):
        with open(target, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", write_on_a_full_disc)
    refuses_to_write(path, noise, "No space left on device", overwrite=overwrite)
    monkeypatch.undo()
    assert files_in(tmp_path) == (["x.wav"] if overwrite else [])
    if overwrite:
        assert path.read_bytes() == b"old"


def test_directory_that_cannot_be_written(tmp_path, noise, monkeypatch):
    def refuse(name, mode="r", *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(builtins, "open", refuse)
    refuses_to_write(tmp_path / "x.wav", noise, "Permission denied")


def test_target_that_appears_meanwhile_is_kept(tmp_path, noise, monkeypatch):
    """Another process creates the target after the first check: it wins, and the message is the same."""
    path = tmp_path / "x.wav"
    true_link = os.link

    def late(source, target):
        path.write_bytes(b"theirs")
        true_link(source, target)

    monkeypatch.setattr(os, "link", late)
    refuses_to_write(path, noise, "it already exists (overwrite=True replaces it)")
    assert path.read_bytes() == b"theirs"
    assert files_in(tmp_path) == ["x.wav"]


def test_file_system_without_hard_links(tmp_path, noise, monkeypatch):
    def unsupported(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    write_audio(tmp_path / "x.wav", noise, RATE)
    assert len(read_audio(tmp_path / "x.wav")) == len(noise)
    refuses_to_write(tmp_path / "x.wav", noise, "it already exists (overwrite=True replaces it)")
    assert files_in(tmp_path) == ["x.wav"]


def test_interrupt_leaves_no_temporary_file(tmp_path, noise, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_audio(tmp_path / "x.wav", noise, RATE, overwrite=True)
    assert files_in(tmp_path) == []


def test_mode_follows_the_umask(tmp_path, noise):
    before = os.umask(0o027)
    try:
        write_audio(tmp_path / "x.wav", noise, RATE)
    finally:
        os.umask(before)
    assert (tmp_path / "x.wav").stat().st_mode & 0o777 == 0o640


def test_longest_possible_name(tmp_path, noise):
    name = "x" * 251 + ".wav"
    write_audio(tmp_path / name, noise, RATE)
    assert files_in(tmp_path) == [name]


def test_truncated_ogg(tmp_path, noise):
    """libsndfile reads what there is of an ogg stream without a word."""
    import soundfile

    soundfile.write(tmp_path / "whole.ogg", noise.numpy(), 22050, format="OGG", subtype="VORBIS")
    assert len(read_audio(tmp_path / "whole.ogg")) > 0
    data = (tmp_path / "whole.ogg").read_bytes()
    (tmp_path / "cut.ogg").write_bytes(data[: data.rindex(b"OggS")])
    refuses_to_read(tmp_path / "cut.ogg", "it is truncated, its last page does not end the stream")
