"""`fastflow vocode`: what is written, what is refused, with which words and which exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result

import fastflow
from fastflow.audio import FloWaveNetMel, MelSpectrogram, read_audio
from fastflow.checkpoints import save
from fastflow.cli import inputs, progress
from fastflow.cli import vocode as command
from fastflow.cli.inputs import Item
from fastflow.models import FloWaveNet, SqueezeWave, WaveGlow
from fastflow.ops import registry

Run = Callable[..., Result]
MakeWav = Callable[..., Path]


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_audio_in_audio_of_the_same_length_out(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    result = vocode(make_wav(tmp_path / "in.wav", samples=4001), "-o", tmp_path / "out.wav")
    assert result.exit_code == 0, result.output
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (4001, 22050, 1, "PCM_16")
    assert soundfile.read(tmp_path / "out.wav")[0].any()
    assert "out.wav: 0.18 s of audio in " in result.stdout
    assert "real-time factor" in result.stdout
    assert result.stderr == ""


def test_other_rates_and_channels(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "in.flac", samples=8000, sampling_rate=44100, channels=2)
    assert vocode(source, "-o", tmp_path / "out.flac").exit_code == 0
    info = soundfile.info(tmp_path / "out.flac")
    assert (info.frames, info.samplerate, info.channels, info.format) == (4000, 22050, 1, "FLAC")


def test_mels_of_every_form(vocode: Run, mel: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", mel)
    np.savez(tmp_path / "b.npz", mel=np.stack([mel, mel[:, ::-1]]))
    torch.save({"mel": torch.from_numpy(mel)[None]}, tmp_path / "c.pt")
    out = tmp_path / "out"
    result = vocode(tmp_path / "a.npy", tmp_path / "b.npz", tmp_path / "c.pt", "-o", out)
    assert result.exit_code == 0, result.output
    assert files(out) == ["a.wav", "b_0.wav", "b_1.wav", "c.wav"]
    assert soundfile.info(out / "a.wav").frames == 12 * 256
    # the same mel and seed give the same samples from every form, alone or in a batch
    assert (out / "a.wav").read_bytes() == (out / "b_0.wav").read_bytes() == (out / "c.wav").read_bytes()
    assert (out / "a.wav").read_bytes() != (out / "b_1.wav").read_bytes()


def flowavenet(path: Path) -> Path:
    torch.manual_seed(0)
    save(FloWaveNet(1, 80, 2, 2, 1, block_per_split=1, pretrained=True, filter_size=4), path)
    return path


def squeezewave(path: Path) -> Path:
    torch.manual_seed(0)
    save(SqueezeWave(80, 2, 128, 2, 16, {"n_layers": 1, "n_channels": 4, "kernel_size": 3}), path)
    return path


@pytest.mark.parametrize(("make_model", "sigma"), [(flowavenet, 0.8), (squeezewave, 1.0)])
def test_other_models(
    make_model: Callable[[Path], Path], sigma: float, run: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model.safetensors")
    np.save(tmp_path / "m.npy", mel / 10 + 1 if make_model is flowavenet else mel)
    for source, samples in ((make_wav(tmp_path / "in.wav", 4001), 4001), (tmp_path / "m.npy", 12 * 256)):
        usual, same = tmp_path / f"{source.stem}_1.wav", tmp_path / f"{source.stem}_2.wav"
        result = run("vocode", "--model", model, source, "-o", usual, "--denoise", 0.01, "--plot")
        assert result.exit_code == 0, result.output
        assert soundfile.info(usual).frames == samples
        assert usual.with_suffix(".png").exists()
        run("vocode", "--model", model, source, "-o", same, "--denoise", 0.01, "--sigma", sigma)
        assert usual.read_bytes() == same.read_bytes()


def test_flowavenet_makes_audio_that_lies_where_the_input_does(run: Run, tmp_path: Path) -> None:
    model = FloWaveNet(1, 80, 1, 1, 1, pretrained=True, filter_size=2)  # the identity, but for exchanged samples
    save(model, tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "in.wav", np.random.default_rng(0).normal(0.0, 0.1, 4001), 22050)
    run("vocode", "--model", tmp_path / "model.safetensors", tmp_path / "in.wav", "-o", tmp_path / "out.wav",
        "--subtype", "FLOAT", "--sigma", 0.1)  # fmt: skip
    noise = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    whole = fastflow.load(tmp_path / "model.safetensors").infer(torch.zeros(1, 80, 16), 0.1, z=noise)[0]
    got = torch.from_numpy(soundfile.read(tmp_path / "out.wav", dtype="float32")[0])
    assert torch.equal(got, whole[47 : 47 + 4001])  # 95 samples short of 16 frames, 47 of them in front


def test_a_mel_that_flowavenet_does_not_take(run: Run, mel: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", mel)
    result = run(
        "vocode", "--model", flowavenet(tmp_path / "f.safetensors"), tmp_path / "m.npy", "-o", tmp_path / "o.wav"
    )
    assert result.exit_code == 1
    assert "`mel` must be of FloWaveNet's front end, with values in 0..1; got -" in result.stderr


def test_no_frames_give_no_samples(vocode: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((80, 0), np.float32))
    result = vocode(tmp_path / "a.npy", "-o", tmp_path / "a.wav")
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "a.wav").frames == 0


def test_directories_keep_their_structure(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    make_wav(tmp_path / "in" / "x.wav")
    make_wav(tmp_path / "in" / "deep" / "x.wav")
    (tmp_path / "in" / "notes.txt").write_text("not audio")
    assert vocode(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert files(tmp_path / "out") == ["deep/x.wav", "x.wav"]


def test_quoted_globs(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    for name in ("a1.wav", "a2.wav", "b1.wav"):
        make_wav(tmp_path / name)
    assert vocode(f"{tmp_path}/a*.wav", "-o", tmp_path / "out").exit_code == 0
    assert files(tmp_path / "out") == ["a1.wav", "a2.wav"]


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_in_the_call(
    vocode: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path
) -> None:
    make_wav(tmp_path / "a.wav", 3000)
    make_wav(tmp_path / "b.wav", 2000)
    np.save(tmp_path / "c.npy", mel)
    inputs = [tmp_path / name for name in ("a.wav", "b.wav", "c.npy")]
    assert vocode(*inputs, "-o", tmp_path / "all", "--seed", 7).exit_code == 0
    assert vocode(*reversed(inputs), "-o", tmp_path / "reversed", "--seed", 7).exit_code == 0
    for path in inputs:
        assert vocode(path, "-o", tmp_path / "alone", "--seed", 7).exit_code == 0
        assert vocode(path, "-o", tmp_path / "other", "--seed", 8).exit_code == 0
        wanted = (tmp_path / "all" / f"{path.stem}.wav").read_bytes()
        assert (tmp_path / "reversed" / f"{path.stem}.wav").read_bytes() == wanted
        assert (tmp_path / "alone" / f"{path.stem}.wav").read_bytes() == wanted
        assert (tmp_path / "other" / f"{path.stem}.wav").read_bytes() != wanted


def test_sigma_zero_needs_no_seed(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "a.wav")
    assert vocode(source, "-o", tmp_path / "1.wav", "--sigma", 0, "--seed", 1).exit_code == 0
    assert vocode(source, "-o", tmp_path / "2.wav", "--sigma", 0, "--seed", 2).exit_code == 0
    assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()


def test_denoise_changes_the_audio_and_keeps_its_length(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "a.wav", 4001)
    assert vocode(source, "-o", tmp_path / "1.wav").exit_code == 0
    result = vocode(source, "-o", tmp_path / "2.wav", "--denoise", 0.5)
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "2.wav").frames == 4001
    assert (tmp_path / "1.wav").read_bytes() != (tmp_path / "2.wav").read_bytes()


def mel_error(path: Path, mel: torch.Tensor) -> float:
    audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    return float((MelSpectrogram()(audio)[:, :, : mel.shape[2]] - mel).abs().mean())


def test_refine_brings_audio_to_its_mel(vocode: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", mel)
    of_audio = MelSpectrogram()(read_audio(make_wav(tmp_path / "a.wav", 4001)))
    for source, wanted in (("a.wav", of_audio), ("m.npy", torch.from_numpy(mel)[None])):
        errors = []
        for refine in (None, 0, 1, 30):
            output = tmp_path / f"{source}_{refine}.wav"
            options = [] if refine is None else ["--refine", refine]
            result = vocode(tmp_path / source, "-o", output, "--denoise", 0.01, "--subtype", "FLOAT", *options)
            assert result.exit_code == 0, result.output
            errors.append(mel_error(output, wanted))
        assert errors[0] == errors[1]  # a checkpoint's audio is left as it is
        assert errors[3] < errors[2] < errors[1]
    assert soundfile.info(tmp_path / "a.wav_30.wav").frames == 4001
    assert soundfile.info(tmp_path / "m.npy_30.wav").frames == 12 * 256


def test_a_bundled_models_audio_is_refined_unless_told_otherwise(run: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "a.wav")
    for name, options in (("usual", []), ("30", ["--refine", 30]), ("none", ["--refine", 0])):
        assert run("vocode", source, "-o", tmp_path / f"{name}.wav", *options).exit_code == 0
    usual, thirty, none = ((tmp_path / f"{name}.wav").read_bytes() for name in ("usual", "30", "none"))
    assert usual == thirty != none


def test_a_mel_too_short_to_refine_is_written_as_it_is(vocode: Run, mel: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", mel[:, :2])
    for refine in (0, 5):
        assert vocode(tmp_path / "m.npy", "-o", tmp_path / f"{refine}.wav", "--refine", refine).exit_code == 0
    assert (tmp_path / "0.wav").read_bytes() == (tmp_path / "5.wav").read_bytes()


def test_flowavenets_audio_is_refined_where_its_frames_are_known(
    run: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path
) -> None:
    model, source = flowavenet(tmp_path / "model.safetensors"), make_wav(tmp_path / "in.wav", 4001)
    wanted = FloWaveNetMel()(read_audio(source))
    errors = []
    for refine in (0, 30):
        output = tmp_path / f"{refine}.wav"
        result = run("vocode", "--model", model, source, "-o", output, "--refine", refine, "--subtype", "FLOAT")
        assert result.exit_code == 0, result.output
        made = torch.from_numpy(soundfile.read(output, dtype="float32")[0])
        errors.append(float((FloWaveNetMel().frames(made[None]) - wanted).abs().mean()))
    assert errors[1] < 0.5 * errors[0]
    np.save(tmp_path / "m.npy", mel / 10 + 1)
    result = run("vocode", "--model", model, tmp_path / "m.npy", "-o", tmp_path / "m.wav", "--refine", 1)
    assert result.exit_code == 1
    assert "m.npy: `--refine` needs audio, not its mel, where the model is a FloWaveNet" in result.output
    assert not (tmp_path / "m.wav").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_the_cpu(vocode: Run, make_wav: MakeWav, tmp_path: Path, dtype: str) -> None:
    source = make_wav(tmp_path / "a.wav")
    assert vocode(source, "-o", tmp_path / "full.wav").exit_code == 0
    result = vocode(source, "-o", tmp_path / "half.wav", "--dtype", dtype, "--denoise", 0.1)
    assert result.exit_code == 0, result.output
    full, half = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("full", "half"))
    assert half.shape == full.shape
    assert half.any()


def test_reference_backend_by_name(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    result = vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav", "--backend", "reference")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_subtype(vocode: Run, make_wav: MakeWav, tmp_path: Path, subtype: str) -> None:
    assert vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav", "--subtype", subtype).exit_code == 0
    assert soundfile.info(tmp_path / "out.wav").subtype == subtype


def test_plot_writes_a_picture_beside_each_output(
    vocode: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", mel)
    result = vocode(make_wav(tmp_path / "a.wav"), tmp_path / "m.npy", "-o", tmp_path / "out", "--plot")
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "out") == ["a.png", "a.wav", "m.png", "m.wav"]
    for name in ("a.png", "m.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_audio_too_short_for_a_picture_is_written_without(vocode: Run, tmp_path: Path, frames: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros((80, frames), np.float32))
    result = vocode(tmp_path / "a.npy", "-o", tmp_path / "a.wav", "--plot")
    assert result.exit_code == 0, result.output
    note = f"note: no picture of {tmp_path}/a.wav: {frames * 256} samples are too short to draw\n"
    assert result.stderr == note
    assert soundfile.info(tmp_path / "a.wav").frames == frames * 256
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_cannot_be_drawn_is_listed(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no room\nand much more")

    monkeypatch.setattr(command, "_plot", fail)
    result = vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav", "--plot")
    assert result.exit_code == 1
    assert result.stderr == f"failed: picture of {tmp_path}/out.wav: no room\n"
    assert soundfile.info(tmp_path / "out.wav").frames == 4000


def test_plot_without_matplotlib_is_refused_before_any_work(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = make_wav(tmp_path / "a.wav")
    check_usage(vocode(source, "-o", tmp_path / "out.wav", "--plot"), "`--plot` needs matplotlib: pip install")
    assert files(tmp_path) == ["a.wav"]


def test_ctrl_c_says_what_was_written(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesise = command._Synthesis.__call__

    def interrupted(self: object, item: Item) -> object:
        if item.source.path.name == "b.wav":
            raise KeyboardInterrupt
        return synthesise(self, item)

    monkeypatch.setattr(command._Synthesis, "__call__", interrupted)
    paths = [make_wav(tmp_path / name) for name in ("a.wav", "b.wav")]
    result = vocode(tmp_path / "missing.wav", *paths, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stdout.startswith("1 file: 0.18 s of audio in ")
    assert result.stderr.splitlines() == [f"failed: {tmp_path}/missing.wav: no such file or directory", "interrupted"]
    assert files(tmp_path / "out") == ["a.wav"]


def test_a_batch_is_read_once_for_planning_and_once_for_its_items(
    vocode: Run, mel: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.stack([mel] * 4))
    read, load = [], inputs.load_mel
    monkeypatch.setattr(inputs, "load_mel", lambda path: read.append(path) or load(path))
    assert vocode(tmp_path / "a.npy", "-o", tmp_path / "out").exit_code == 0
    assert len(read) == 2


def test_clipped_samples_are_counted(
    vocode: Run, make_wav: MakeWav, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loud(self: WaveGlow, mel: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        audio = torch.zeros(1, mel.shape[2] * 256)
        audio[0, 100] = 2.0
        return audio

    monkeypatch.setattr(WaveGlow, "infer", loud)
    result = vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"warning: {tmp_path}/out.wav: 1 of 4000 samples were clipped\n"


def test_a_bar_in_a_terminal_only(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wav(tmp_path / "a.wav")
    make_wav(tmp_path / "b.wav")
    assert vocode(tmp_path, "-o", tmp_path / "1").stderr == ""
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert "0%|" in vocode(tmp_path / "?.wav", "-o", tmp_path / "2").stderr


# bad files among good ones


def test_good_files_are_written_and_bad_ones_listed(
    vocode: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    make_wav(source / "good.wav")
    np.save(source / "good_mel.npy", mel)
    (source / "empty.wav").touch()
    (source / "text.wav").write_text("this is not audio")
    truncated = make_wav(source / "truncated.wav")
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    make_wav(source / "short.wav", samples=100)
    np.save(source / "transposed.npy", mel.T)
    np.save(source / "integers.npy", np.zeros((80, 3), np.int64))
    broken = mel.copy()
    broken[3, 5:7] = np.nan
    np.save(source / "nan.npy", broken)
    result = vocode(source, tmp_path / "missing.wav", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert files(tmp_path / "out") == ["good.wav", "good_mel.wav"]
    assert "2 files: " in result.stdout
    failed = {line.removeprefix("failed: ") for line in result.stderr.splitlines()}
    assert len(failed) == 8, result.stderr
    for name, reason in {
        "missing.wav": "no such file or directory",
        "empty.wav": "the file is empty",
        "text.wav": "cannot be decoded as audio",
        "truncated.wav": "truncated, 1000 bytes of samples are missing",
        "short.wav": "at least 513 samples",
        "transposed.npy": "`mel` must be [80, T] or [B, 80, T]; got [12, 80] (transposed?)",
        "integers.npy": "`mel` must be floating point; got int64",
        "nan.npy": "2 ",
    }.items():
        (line,) = (line for line in failed if name in line)
        assert reason in line
        assert line.count(name) == 1
    (line,) = (line for line in failed if "nan.npy" in line)
    assert "finite" in line
    assert "first at [3, 5]" in line


def test_numbers_beyond_the_dtype_are_named(vocode: Run, mel: np.ndarray, tmp_path: Path) -> None:
    wide = mel.astype(np.float64)
    wide[0, 0] = -1e300
    np.save(tmp_path / "a.npy", wide)
    result = vocode(tmp_path / "a.npy", "-o", tmp_path / "a.wav")
    assert result.exit_code == 1
    assert "`mel` must fit into float32; got values up to 1e+300" in result.stderr


def test_names_that_are_too_long_do_not_stop_the_others(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    long = tmp_path / f"{'x' * 300}.wav"
    result = vocode(long, make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr == f"failed: {long}: no such file or directory\n"
    assert files(tmp_path / "out") == ["a.wav"]
    for output in (long, tmp_path / ("x" * 300)):
        check_usage(vocode(tmp_path / "a.wav", "-o", output), f"{output}: File name too long")
    check_usage(vocode(tmp_path / "a.wav", "-o", tmp_path / "b.wav", "--model", long), "no file")


def test_names_cannot_speak_to_the_terminal(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[31m\nb.wav").write_text("not audio")
    result = vocode(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "in/a\\x1b[31m\\nb.wav: it cannot be decoded" in result.stderr
    result = vocode(make_wav(tmp_path / "in" / "b.wav"), "-o", tmp_path / "x\n\x1b.wav")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path}/x\\n\\x1b.wav: 0.18 s" in result.stdout


def test_all_bad_is_still_not_a_usage_error(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no")
    result = vocode(tmp_path / "a.wav", "-o", tmp_path / "out.wav")
    assert result.exit_code == 1
    assert "a.wav" in result.stderr
    assert files(tmp_path) == ["a.wav"]
    make_wav(tmp_path / "existing.wav")
    result = vocode(tmp_path / "a.wav", "-o", tmp_path / "existing.wav", "--overwrite")
    assert result.exit_code == 1
    (tmp_path / "bad.npy").write_text("no")
    result = vocode(tmp_path / "bad.npy", "-o", tmp_path / "existing.wav", "--overwrite")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"failed: {tmp_path}/bad.npy: not a readable .npy file")


def test_a_bad_item_of_a_batch_does_not_stop_the_others(vocode: Run, mel: np.ndarray, tmp_path: Path) -> None:
    batch = np.stack([mel, mel, mel])
    batch[1, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", batch)
    result = vocode(tmp_path / "a.npy", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert files(tmp_path / "out") == ["a_0.wav", "a_2.wav"]
    assert "a.npy[1]" in result.stderr


# outputs that may not be written


def test_existing_outputs_are_refused_before_any_work_unless_overwrite(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wav(tmp_path / "a.wav")
    make_wav(tmp_path / "b.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_text("precious")
    result = vocode(tmp_path / "a.wav", tmp_path / "b.wav", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"a.wav: the output {tmp_path}/out/a.wav exists (--overwrite replaces it)" in result.stderr
    assert (tmp_path / "out" / "a.wav").read_text() == "precious"
    assert (tmp_path / "out" / "b.wav").exists()

    monkeypatch.setattr(command, "_Synthesis", lambda *_: pytest.fail("loaded a model with nothing to do"))
    assert vocode(tmp_path / "a.wav", "-o", tmp_path / "out" / "a.wav").exit_code == 1
    monkeypatch.undo()

    assert vocode(tmp_path / "a.wav", "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 4000


def test_an_existing_picture_is_refused_too(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    make_wav(tmp_path / "a.wav")
    (tmp_path / "out.png").write_text("precious")
    result = vocode(tmp_path / "a.wav", "-o", tmp_path / "out.wav", "--plot")
    assert result.exit_code == 1
    assert "out.png exists" in result.stderr
    assert not (tmp_path / "out.wav").exists()


def test_an_input_is_never_overwritten(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "a.wav")
    before = source.read_bytes()
    for output in (tmp_path, source):
        result = vocode(source, "-o", output, "--overwrite")
        assert result.exit_code == 1
        assert f"{source}: the output {source} is an input of this call" in result.stderr
    assert source.read_bytes() == before


def test_an_output_that_is_a_directory(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.wav").mkdir(parents=True)
    result = vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out", "--overwrite")
    assert result.exit_code == 1
    assert "out/a.wav is a directory" in result.stderr


def test_nothing_is_left_behind_when_writing_fails(
    vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = make_wav(tmp_path / "a.wav")
    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "replace", full)
    result = vocode(source, "-o", tmp_path / "out" / "b.wav")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert files(tmp_path) == ["a.wav"]


# wrong usage: exit status 2, one line, nothing written


def check_usage(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    lines = result.stderr.splitlines()
    # our own messages are one line; click puts its synopsis and a hint before those of its option parser
    assert lines == errors or (lines[0].startswith("Usage: fastflow vocode ") and lines[-1] == errors[0])


def test_no_inputs(vocode: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_usage(vocode("-o", tmp_path / "out"), "Missing argument 'IN...'")
    check_usage(
        vocode(tmp_path / "empty", f"{tmp_path}/*.wav", "-o", tmp_path / "out"),
        f"no inputs found: {tmp_path}/empty: no audio or mel files in this directory; {tmp_path}/*.wav: no",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma", "-0.1"], "`--sigma` must be >= 0; got -0.1"),
        (["--sigma", "nan"], "`--sigma` must be >= 0; got nan"),
        (["--sigma", "inf"], "`--sigma` must be >= 0; got inf"),
        (["--denoise", "-1"], "`--denoise` must be >= 0; got -1"),
        (["--refine", "-1"], "'--refine'"),
        (["--refine", "1.5"], "'1.5' is not a valid integer"),
        (["--seed", "-1"], "'--seed'"),
        (["--backend", "magic"], "'magic' is not one of 'auto', 'reference', 'cpu', 'triton', 'cuda'"),
        (["--backend", "cuda"], "backend 'cuda' cannot run: "),
        (["--dtype", "int8"], "'int8' is not one of 'float32', 'float16', 'bfloat16'"),
        (["--device", ""], "must not be empty"),
        (["--model", ""], "Invalid value for '--model': must not be empty"),
        (["-o", ""], "Invalid value for '-o' / '--output': must not be empty"),
        ([""], "Invalid value for 'IN...': must not be empty"),
        (["--device", "nonsense"], "`--device nonsense` cannot be used: "),
        (["--device", "cuda:99"], "`--device cuda:99` cannot be used: "),
        (["--model", "no/such/model.safetensors"], "no/such/model.safetensors"),
    ],
)
def test_wrong_options(vocode: Run, make_wav: MakeWav, tmp_path: Path, arguments: list[str], message: str) -> None:
    check_usage(vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav", *arguments), message)
    assert files(tmp_path) == ["a.wav"]


def test_a_model_that_is_not_one(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("not a model")
    result = vocode(make_wav(tmp_path / "a.wav"), "-o", tmp_path / "out.wav", "--model", tmp_path / "model.safetensors")
    check_usage(result, "model.safetensors")


def test_a_backend_that_cannot_run_this_model(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    if not {row.backend: row.can_run for row in registry.status()}["cpu"]:
        pytest.skip("the cpu library is not built")
    source = make_wav(tmp_path / "a.wav")
    result = vocode(source, "-o", tmp_path / "out.wav", "--backend", "cpu", "--dtype", "float16")
    check_usage(result, "float16")
    assert not (tmp_path / "out.wav").exists()


def test_a_singular_model(vocode: Run, make_wav: MakeWav, checkpoint: Path, tmp_path: Path) -> None:
    model = fastflow.load(checkpoint)
    torch.nn.init.zeros_(next(model.convinv[1].parameters()))
    save(model, tmp_path / "singular.safetensors")
    source = make_wav(tmp_path / "a.wav")
    result = vocode(source, "-o", tmp_path / "out.wav", "--model", tmp_path / "singular.safetensors")
    check_usage(result, "singular")
    assert not (tmp_path / "out.wav").exists()


def test_colliding_inputs_are_named_before_any_work(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    first, second = make_wav(tmp_path / "1" / "x.wav"), make_wav(tmp_path / "2" / "x.flac")
    other = make_wav(tmp_path / "y.wav")
    result = vocode(other, first, second, "-o", tmp_path / "out")
    check_usage(result, f"{first} and {second} would both be written to {tmp_path}/out/x.wav")
    assert not (tmp_path / "out").exists()


def test_several_items_need_a_directory(vocode: Run, make_wav: MakeWav, mel: np.ndarray, tmp_path: Path) -> None:
    first, second = make_wav(tmp_path / "a.wav"), make_wav(tmp_path / "b.wav")
    check_usage(
        vocode(first, second, "-o", tmp_path / "out.wav"),
        "names one file, but there are 2 items from 2 inputs",
    )
    np.save(tmp_path / "m.npy", np.stack([mel, mel]))
    check_usage(vocode(tmp_path / "m.npy", "-o", tmp_path / "out.wav"), "there are 2 items from 1 input: name")
    (tmp_path / "file").touch()
    check_usage(vocode(first, second, "-o", tmp_path / "file"), "file` is a file, not a directory")


def test_outputs_that_cannot_be_written(vocode: Run, make_wav: MakeWav, tmp_path: Path) -> None:
    source = make_wav(tmp_path / "a.wav")
    (tmp_path / "file").touch()
    check_usage(vocode(source, "-o", tmp_path / "out.mp3"), "only .wav and .flac can be written")
    check_usage(vocode(source, "-o", tmp_path / "out.PNG"), "only .wav and .flac can be written")
    check_usage(vocode(source, "-o", tmp_path / "file" / "out.wav"), f"{tmp_path}/file is not a directory")
    check_usage(
        vocode(source, "-o", tmp_path / "x.flac", "--subtype", "FLOAT"),
        "`--subtype FLOAT` needs a .wav output",
    )
    assert files(tmp_path) == ["a.wav", "file"]


def test_no_permission(vocode: Run, make_wav: MakeWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_wav(tmp_path / "a.wav")
    # root may write anywhere, and tests may run as root: ask the question that the command asks
    monkeypatch.setattr(os, "access", lambda *_: False)
    check_usage(vocode(source, "-o", tmp_path / "out.wav"), f"no permission in {tmp_path}")
