"""Images: the data, and the loop that trains flows of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import fastflow
from fastflow.cli.main import main
from fastflow.cli.train import train as train_command
from fastflow.models import Glow, ImageFlow, RealNVP, WaveGlow, dequantize, quantize
from fastflow.train import DataError, ImageDataset, SegmentDataset, TrainingError, train

from .test_loop import CONFIG
from .test_run import _whole_and_killed

MODEL = {"name": "Glow", "in_channels": 1, "n_levels": 1, "n_steps": 2, "hidden_channels": 8}


def glow(**changes: Any) -> Glow:
    torch.manual_seed(0)
    return Glow(**{"in_channels": 1, "n_levels": 1, "n_steps": 2, "hidden_channels": 8, **changes})


def same(a: ImageFlow, b: ImageFlow) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def pictures(count: int, *shape: int) -> np.ndarray:
    """Bright images with dark left halves, uint8."""
    images = torch.randint(150, 256, (count, *shape), generator=torch.Generator().manual_seed(0))
    images[..., : shape[-1] // 2] //= 4
    return images.to(torch.uint8).numpy()


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, pictures(32, 8, 8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two grey images, one of them in a subdirectory, one of colours, and a file that is none."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    Image.fromarray(pictures(1, 6, 4)[0]).save(path / "a.png")
    Image.fromarray(pictures(2, 6, 4)[1]).save(path / "more" / "b.pgm")
    Image.fromarray(pictures(1, 6, 4, 3)[0]).save(path / "c.png")
    (path / "notes.txt").write_text("no image\n")
    return path


class Stopped(ImageDataset):
    """Sends SIGINT before batch `at`."""

    at: int | None = None

    def batch(self, number: int, size: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor]:
        if number == self.at:
            signal.raise_signal(signal.SIGINT)
        return super().batch(number, size, share)


def test_a_batch_is_dequantised_images_by_seed_and_number(array: Path) -> None:
    data = ImageDataset([array], n_bits=5, seed=3)
    (x,) = data.batch(7, 64)
    assert (x.shape, x.dtype, len(data), data.shape) == ((64, 1, 8, 8), torch.float32, 32, (1, 8, 8))
    all_images = torch.from_numpy(np.load(array))[:, None] >> 3
    found = [int((all_images == image).flatten(1).all(1).nonzero()) for image in quantize(x, 5)]
    assert len(set(found)) > 16
    noise = (x + 0.5) * 32 - quantize(x, 5)
    assert 0.45 < noise.mean() < 0.55 and noise.std() > 0.25
    assert len({row.sum().item() for row in noise}) == 64, "each image has noise of its own"
    assert ImageDataset([array], n_bits=5, seed=3).batch(7, 64)[0].equal(x)
    assert not data.batch(8, 64)[0].equal(x)
    assert not ImageDataset([array], n_bits=5, seed=4).batch(7, 64)[0].equal(x)
    for rank in range(3):
        assert data.batch(7, 64, (rank, 3))[0].equal(x[rank::3])


def test_every_image_of_every_file_is_drawn(tmp_path: Path) -> None:
    for name, start, count in (("a", 0, 3), ("b", 100, 1), ("c", 200, 4)):
        values = np.arange(start, start + count, dtype=np.uint8)[:, None, None, None]
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(values, (count, 3, 2, 2)))
    data = ImageDataset([tmp_path])
    drawn = quantize(data.batch(0, 200)[0])
    assert sorted({int(image[0, 0, 0]) for image in drawn}) == [0, 1, 2, 100, 200, 201, 202, 203]
    assert all(image.unique().numel() == 1 for image in drawn)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_image_files_are_of_the_channels_that_are_asked_for(folder: Path, channels: int | None) -> None:
    data = ImageDataset([folder], channels=channels)
    assert data.shape == (channels or 1, 6, 4)
    assert len(data) == 3
    first = torch.from_numpy(np.array(Image.open(folder / "a.png")))
    assert any(torch.equal(image, first.expand(data.shape)) for image in quantize(data.batch(0, 32)[0]))


def test_images_of_other_sizes_are_refused(folder: Path) -> None:
    Image.fromarray(pictures(1, 6, 8)[0]).save(folder / "wide.png")
    with pytest.raises(
        DataError, match=r"wide\.png: its images must be .* = \[1, 6, 4\] as in .*a\.png; got \[1, 6, 8\]"
    ):
        ImageDataset([folder])


def test_one_array_of_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "one.npz", pictures(4, 3, 2, 2))
    assert ImageDataset([tmp_path / "one.npz"]).shape == (3, 2, 2)
    np.savez(tmp_path / "two.npz", x=pictures(4, 2, 2), y=np.zeros(4))
    with pytest.raises(DataError, match=r"two\.npz: it must hold one array; got x, y"):
        ImageDataset([tmp_path / "two.npz"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.zeros((2, 4, 4)), r"a\.npy: it must be uint8 .*; got float64 \[2, 4, 4\]"),
        ("a.npy", np.zeros((4, 4), np.uint8), r"a\.npy: it must be uint8 .*; got uint8 \[4, 4\]"),
        ("a.npy", np.zeros((0, 4, 4), np.uint8), r"a\.npy: it must be uint8 .*; got uint8 \[0, 4, 4\]"),
        ("a.npy", np.array([{}]), r"a\.npy: it cannot be read as an array \(.*Python objects"),
        ("a.npy", b"nothing", r"a\.npy: it cannot be read as an array"),
        ("a.npz", b"PK\x03\x04nothing", r"a\.npz: it cannot be read as an array"),
        ("a.png", b"nothing", r"a\.png: it cannot be read as an image"),
        ("a.tif", np.zeros((4, 4), np.uint16), r"a\.tif: it must have 8 bits per value; got Pillow's mode I;16"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(DataError, match=rf"none of the 1 files can be used:\n  .*{message}"):
        ImageDataset([path])
    np.save(tmp_path / "good.npy", pictures(2, 4, 4))
    assert [skipped for skipped, _ in ImageDataset([tmp_path]).skipped] == [path]


def test_settings_and_sources(tmp_path: Path, array: Path) -> None:
    for settings, message in (
        ({"n_bits": 9}, "`n_bits` must be 1 to 8; got 9"),
        ({"seed": -1}, "`seed` must be 0 or more; got -1"),
        ({"channels": 0}, "`channels` must be at least 1; got 0"),
        ({"channels": 3}, r"its images must be \[C, H, W\] = \[3, 8, 8\]; got \[1, 8, 8\]"),
    ):
        with pytest.raises(DataError, match=message):
            ImageDataset([array], **settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no \.png, .* or \.npz file in it"):
        ImageDataset([tmp_path / "empty"])


def test_image_files_need_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"image files need the package Pillow \(pip install 'fastflow\[images\]'\)"):
        ImageDataset([folder])


def test_an_image_that_turns_out_damaged_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ImageDataset([folder], channels=1)
    good = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(good[: len(good) * 2 // 3])
    (folder / "more" / "b.pgm").unlink()
    other = torch.from_numpy(np.array(Image.open(folder / "c.png").convert("L")))
    assert all(torch.equal(image[0], other) for image in quantize(data.batch(0, 16)[0]))
    assert sorted(Path(r.getMessage().split(": ")[1]).name for r in caplog.records) == ["a.png", "b.pgm"]
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"(?s)none of the 3 images can be read any more:.*a\.png: .*c\.png: "):
        data.batch(0, 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_fall(array: Path, tmp_path: Path, precision: str) -> None:
    data = ImageDataset([array], n_bits=5)
    model = glow()
    settings: dict[str, Any] = {"steps": 60, "batch_size": 16, "lr": 5e-3, "validation": data}
    facts = train(model, data, tmp_path / "m.safetensors", ema=0.9, precision=precision, **settings)
    assert facts["progress"]["validation_loss"] < 4.2  # of 5; the two halves alone, uniform, cost 4.1 and 2.7
    assert facts["progress"]["samples"] == 60 * 16
    assert facts["data"] == {
        "sources": ["/".join(array.parts[-3:-1])],
        "files": 1,
        "skipped_files": 0,
        "images": 32,
        "shape": [1, 8, 8],
    }
    assert facts["settings"]["n_bits"] == 5
    loaded = Glow.load(tmp_path / "m.safetensors")
    assert same(loaded, model)
    with torch.no_grad():
        images = torch.from_numpy(np.load(array))[:, None] >> 3
        bits = loaded.bits_per_dim(images, 5, generator=torch.Generator().manual_seed(0)).mean()
    assert float(bits) == pytest.approx(facts["progress"]["validation_loss"], abs=0.1)


@pytest.mark.parametrize("kind", ["Glow", "RealNVP"])
def test_resumed_equals_uninterrupted_bit_for_bit(array: Path, tmp_path: Path, kind: str) -> None:
    def make() -> ImageFlow:
        torch.manual_seed(0)
        return glow() if kind == "Glow" else RealNVP(1, 1, 4)

    data = Stopped([array], seed=3)
    settings: dict[str, Any] = {"steps": 8, "batch_size": 4, "lr": 3e-3}
    whole = make()
    train(whole, data, tmp_path / "whole.safetensors", **settings)
    data.at = 4
    with pytest.raises(KeyboardInterrupt):
        train(make(), data, tmp_path / "parts.safetensors", **settings)
    assert json.loads((tmp_path / "parts.json").read_text())["progress"]["step"] == 5
    data.at = None
    resumed = make()
    train(resumed, data, tmp_path / "parts.safetensors", workers=1, resume=True, **settings)
    assert same(resumed, whole)


@pytest.mark.parametrize("kind", [Glow, RealNVP])
def test_less_memory_gives_the_same_loss(array: Path, tmp_path: Path, kind: type[ImageFlow]) -> None:
    sizes = {"name": kind.__name__, "in_channels": 1, "n_levels": 2, "hidden_channels": 8}
    sizes |= {"n_steps": 2} if kind is Glow else {}
    losses = []
    for way in ("autograd", "recompute", "invert"):
        out = tmp_path / f"{way}.safetensors"
        config = json.dumps({"model": sizes, "backprop": way, "lr": 0.01, "batch_size": 4})
        command = ["train", str(array), "-o", str(out), "--steps", "4", "--config", config, "--validation", str(array)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        losses.append(json.loads(out.with_suffix(".json").read_text())["progress"]["validation_loss"])
        assert kind.load(out).backprop == "autograd"  # which says nothing of the weights
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_models_and_data_that_do_not_fit(array: Path, speech: Path, tmp_path: Path) -> None:
    images, audio = ImageDataset([array]), SegmentDataset([speech], segment=2048)
    np.save(tmp_path / "odd.npy", pictures(2, 6, 7))
    odd = ImageDataset([tmp_path / "odd.npy"])
    for model, data, settings, message in (
        (glow(), audio, {}, "a Glow is trained on a ImageDataset; got a SegmentDataset"),
        (WaveGlow(**CONFIG), images, {}, "a WaveGlow is trained on a SegmentDataset; got a ImageDataset"),
        (glow(in_channels=3), images, {}, "the model's images have 3 channels, the dataset's 1"),
        (glow(), odd, {}, "the dataset's images do not fit the model: `width` must be a multiple of 2, .*; got 7"),
        (
            glow(),
            images,
            {"validation": ImageDataset([array], n_bits=4)},
            "`n_bits` of all datasets must be the same; got 8 and 4",
        ),
        (glow(), images, {"sigma": 0.7}, r"`sigma` must be 1 for a Glow; got 0\.7"),
        (glow(), images, {"dtype": torch.float16}, r"`dtype` must be None or torch\.float32 for a Glow; got .*16"),
    ):
        with pytest.raises(TrainingError, match=message):
            # before the first of many steps
            train(model, data, tmp_path / "m.safetensors", steps=10**6, batch_size=2, **settings)  # type: ignore[arg-type]


def test_other_images_are_noticed_by_a_resumed_run(tmp_path: Path) -> None:
    said = []
    for name, number in (("a", 2), ("a", 2), ("a", 3), ("b", 3)):
        np.save(tmp_path / f"{name}.npy", pictures(number, 4, 4))
        said.append(ImageDataset([tmp_path / f"{name}.npy"]).options()["data"])
    assert said[0] == said[1] and len(set(said)) == 3
    assert said[0].startswith("2 images (")


def test_arrays_are_not_held_open(tmp_path: Path) -> None:
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", pictures(2, 4, 4))
    before = len(os.listdir("/proc/self/fd"))
    data = ImageDataset([tmp_path])
    data.batch(0, 16)
    assert len(data) == 16 and len(os.listdir("/proc/self/fd")) == before


def test_pictures_in_tensorboard(array: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = ImageDataset([array], n_bits=4)
    train(glow(), data, tmp_path / "m.safetensors", steps=2, validation=data, tensorboard=tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board")).Reload()  # type: ignore[no-untyped-call]
    (picture,) = events.Images("samples")
    assert (picture.width, picture.height, picture.step) == (64, 16, 2)
    assert {"loss", "images per second", "validation loss"} <= set(events.Tags()["scalars"])


COMMAND = ["--bits", "5", "--batch-size", "4", "--config", json.dumps({"model": MODEL, "save_every": 1e-4})]


def test_killed_and_resumed_is_uninterrupted(array: Path, tmp_path: Path) -> None:
    weights, said = _whole_and_killed(array, tmp_path, COMMAND, seed=1)
    assert "32 images of 1 x 8 x 8" in said
    assert Glow.load(weights).config["in_channels"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segment", "2048"], "`--segment` is for models of audio; got a Glow"),
        (["--n-flows", "2"], "`--n-flows` is no argument of Glow"),
        (["--n-group", "2"], "`--n-group` is no argument of Glow"),
        (["--layers", "2"], "`--layers` is no argument of Glow"),
        (["--channels", "2"], "`--channels` is no argument of Glow"),
        (["--bits", "9"], "Invalid value for '--bits'"),
        (["--config", json.dumps({"model": MODEL, "segment": 2048})], "`--segment` is for models of audio; got a Glow"),
        (["--config", '{"model": {"name": "RealNVP"}}'], r"its images must be [C, H, W] = [3, 8, 8]; got [1, 8, 8]"),
        (
            ["--config", '{"model": {"name": "WaveGlow"}}', "--bits", "5"],
            "`--bits` is for models of images; got a Wave",
        ),
        (["--config", '{"model": {"name": "Glow", "n_levels": 0}}'], "cannot build this model: `n_levels` must be at"),
        (["--config", '{"model": {"name": "Glow", "depth": 3}}'], "unknown depth; the keys are in_channels, n_levels"),
    ],
)
def test_options_that_say_nothing_to_images(array: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    config = [] if "--config" in arguments else ["--config", json.dumps({"model": MODEL})]
    command = ["train", str(array), "-o", str(tmp_path / "m.safetensors"), "--steps", "1", *config, *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert list(tmp_path.glob("m.*")) == []


def test_the_dataset_dequantises_as_the_model_does(array: Path) -> None:
    """`bits_of_values` of what `dequantize` makes is `bits_per_dim`."""
    model, images = glow(), torch.from_numpy(np.load(array))[:4, None]
    with torch.no_grad():
        model.bits_per_dim(images)
        expected = model.bits_per_dim(images, generator=torch.Generator().manual_seed(1))
        x = dequantize(images, generator=torch.Generator().manual_seed(1))
        assert torch.equal(model.bits_of_values(x, 8), expected)


def test_the_guide_s_examples_run_and_its_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(fastflow.__file__).parents[1] / "docs" / "glow.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", pictures(4, 3, 8, 8))
    names: dict[str, object] = {}
    for example in re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        exec(compile(example, "docs/glow.md", "exec"), names)
    assert Path("glow-small.json").exists()
    (command,) = re.findall(r"^fastflow train (.*?[^\\])$", guide, re.MULTILINE | re.DOTALL)
    arguments = shlex.split(command.replace("\\\n", " "))
    context = train_command.make_context("train", arguments)
    assert context.params["bits"] == 5 and context.params["config"]["model"]["n_steps"] == 32
