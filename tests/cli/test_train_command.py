"""`fastflow train`: a model that loads comes out; wrong settings are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import fastflow

Run = Callable[..., Result]
MakeWav = Callable[..., Path]
TINY = ["--n-flows", 2, "--n-group", 8, "--layers", 1, "--channels", 8, "--batch-size", 2, "--segment", 2048]


@pytest.fixture
def data(make_wav: MakeWav, tmp_path: Path) -> Path:
    make_wav(tmp_path / "data" / "a.wav", 6000)
    make_wav(tmp_path / "data" / "b.wav", 5000)
    return tmp_path / "data"


def test_trains_resumes_and_loads(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    result = run("train", data, "-o", out, "--steps", 2, *TINY)
    assert result.exit_code == 0, result.output
    assert f"{out}: 2 steps" in result.stdout
    config = fastflow.load(out).config
    assert (config["n_flows"], config["n_group"], config["WN_config"]["n_channels"]) == (2, 8, 8)

    result = run("train", data, "-o", out, "--steps", 3, *TINY)
    assert result.exit_code == 2
    assert "exists (--resume goes on from it, --overwrite replaces it)" in result.stderr
    result = run("train", data, "-o", out, "--steps", 3, "--resume", *TINY)
    assert result.exit_code == 0, result.output
    assert f"{out}: 3 steps" in result.stdout


def test_goes_on_from_a_checkpoint(run: Run, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run("train", data, "-o", first, "--steps", 2, *TINY).exit_code == 0
    gently = ["--steps", 1, "--batch-size", 2, "--segment", 2048, "--lr", 1e-9]
    result = run("train", data, "-o", second, "--from-checkpoint", first, "--seed", 1, *gently)
    assert result.exit_code == 0, result.output
    before, after = fastflow.load(first), fastflow.load(second)
    assert before.config == after.config
    for name, weight in before.state_dict().items():
        assert weight.allclose(after.state_dict()[name], rtol=1e-6, atol=1e-7), name


def test_the_sizes_are_the_checkpoints(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    config = ["--config", '{"model": {"n_flows": 2}}']
    arguments = ["-o", out, "--steps", 1, "--from-checkpoint", "waveglow-small"]
    result = run("train", data, *arguments, "--layers", 2, "--n-flows", 3, *config)
    assert result.exit_code == 2
    assert "the sizes are the checkpoint's; got `--n-flows`, `--layers`, `model` in --config too" in result.stderr
    result = run("train", data, *arguments[:-1], tmp_path / "none.pt")
    assert result.exit_code == 2 and "none.pt" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("backprop", ["recompute", "invert"])
def test_less_memory_gives_the_same_loss(run: Run, data: Path, tmp_path: Path, backprop: str) -> None:
    losses = []
    for way in ("autograd", backprop):
        out = tmp_path / f"{way}.safetensors"
        assert run("train", data, "-o", out, "--steps", 3, "--backprop", way, *TINY).exit_code == 0
        losses.append(json.loads(out.with_suffix(".json").read_text())["progress"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_seed_decides_the_weights(run: Run, data: Path, tmp_path: Path) -> None:
    for name, seed in (("1a", 1), ("1b", 1), ("2", 2)):
        out = tmp_path / f"{name}.safetensors"
        assert run("train", data, "-o", out, "--steps", 1, "--seed", seed, *TINY).exit_code == 0
    weights = {name: fastflow.load(tmp_path / f"{name}.safetensors").state_dict() for name in ("1a", "1b", "2")}
    key = "WN.0.start.weight_v"
    assert weights["1a"][key].equal(weights["1b"][key])
    assert not weights["1a"][key].equal(weights["2"][key])


def test_config_from_json_text_and_file(run: Run, data: Path, tmp_path: Path) -> None:
    text = json.dumps({"model": {"n_flows": 3, "WN_config": {"n_channels": 4}}})
    (tmp_path / "config.json").write_text(text)
    for i, config in enumerate((text, tmp_path / "config.json")):
        out = tmp_path / f"{i}.safetensors"
        result = run("train", data, "-o", out, "--steps", 1, "--config", config, "--layers", 1, "--segment", 2048)
        assert result.exit_code == 0, result.output
        made = fastflow.load(out).config
        assert (made["n_flows"], made["WN_config"]["n_channels"], made["WN_config"]["n_layers"]) == (3, 4, 1)


def test_the_command_line_goes_before_the_config(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    config = json.dumps({"data": [str(data)], "output": str(out), "minutes": 60, "lr": "1e-3", "validation": None})
    result = run("train", "--config", config, "--steps", 1, *TINY)
    assert result.exit_code == 0, result.output
    assert f"{out}: 1 steps" in result.stdout


def test_data_may_be_an_option(run: Run, data: Path, make_wav: MakeWav, tmp_path: Path) -> None:
    make_wav(tmp_path / "c.wav", 7000)
    config = json.dumps({"data": [str(tmp_path / "none")]})
    for arguments, files in (
        (["--data", data], 2),
        (["--data", data / "a.wav", "--data", tmp_path / "c.wav"], 2),
        ([data, "--data", tmp_path / "c.wav", "--config", config], 3),
        (["--data", tmp_path / "c.wav", "--config", config], 1),
    ):
        out = tmp_path / "model.safetensors"
        result = run("train", *arguments, "-o", out, "--steps", 1, "--overwrite", *TINY)
        assert result.exit_code == 0, result.output
        assert json.loads(out.with_suffix(".json").read_text())["data"]["files"] == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", '{"more_data": "x"}'], "--config: unknown more_data; the keys are backprop, "),
        (["--config", '{"steps": true}'], "--config: `steps` must be a whole number; got True"),
        (["--config", '{"batch_size": 1.9}'], "--config: `batch_size` must be a whole number; got 1.9"),
        (["--config", '{"lr": [1]}'], "--config: `lr` must be a number; got [1]"),
        (["--config", '{"resume": "yes please"}'], "--config: `resume` must be true or false; got 'yes please'"),
        (["--config", '{"tensorboard": true}'], "--config: `tensorboard` must be a text; got True"),
        (["--config", '{"step": 3}'], "--config: unknown step; the keys are backprop, batch_size, bits, channels, "),
        ([], "give --steps or --minutes, one of them"),
        (["--steps", 1, "--minutes", 1], "give --steps or --minutes, one of them"),
        (["--minutes", "-1"], "`--minutes` must be > 0; got -1"),
        (["--steps", 1, "--lr", "0"], "`--lr` must be > 0; got 0"),
        (["--minutes", "inf"], "`--minutes` must be > 0; got inf"),
        (["--minutes", "nan"], "`--minutes` must be > 0; got nan"),
        (["--steps", 1, "--lr", "inf"], "`--lr` must be > 0; got inf"),
        (["--steps", 1, "--lr", "nan"], "`--lr` must be > 0; got nan"),
        (["--steps", 1, "--seed", 2**63], "Invalid value for '--seed'"),
        (["--steps", 1, "--n-flows", 0], "Invalid value for '--n-flows'"),
        (["--steps", 1, "--n-group", 7], "cannot build this model: `n_group` must be even"),
        (["--steps", 1, "--config", '{"model": {"n_mel_channels": 40}}'], "the front end makes 80 mel bands; got 40"),
        (["--steps", 1, "--config", "{"], "--config is not valid YAML"),
        (["--steps", 1, "--config", "no-such-file.json"], "no-such-file.json"),
        (
            ["--steps", 1, "--config", '{"model": {"n_flowers": 3}}'],
            "unknown n_flowers; the keys are n_mel_channels, n_flows, ",
        ),
        (["--steps", 1, "--config", '{"model": {"WN_config": 3}}'], "`WN_config` must be an object"),
        (["--steps", 1, "--segment", 1000], "segment"),
        (["--steps", 1, "--device", "nonsense"], "`--device nonsense` cannot be used"),
    ],
)
def test_wrong_options(run: Run, data: Path, tmp_path: Path, arguments: list[object], message: str) -> None:
    result = run("train", data, "-o", tmp_path / "out.safetensors", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.glob("out.*")) == []


def test_no_data(run: Run, tmp_path: Path) -> None:
    result = run("train", tmp_path / "nothing", "-o", tmp_path / "out.safetensors", "--steps", 1)
    assert result.exit_code == 2
    assert "nothing" in result.stderr


def test_names_that_are_too_long(run: Run, data: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'x' * 300}.safetensors"
    for source, output in ((long, tmp_path / "out.safetensors"), (data, long), (data, long / "out.safetensors")):
        result = run("train", source, "-o", output, "--steps", 1, *TINY)
        assert result.exit_code == 2
        assert str(long) in result.stderr


def test_bad_files_are_skipped_and_named(run: Run, data: Path, tmp_path: Path) -> None:
    (data / "text.wav").write_text("not audio")
    result = run("train", data, "-o", tmp_path / "out.safetensors", "--steps", 1, *TINY)
    assert result.exit_code == 0, result.output
    assert "skipped: " in result.stderr
    assert "text.wav" in result.stderr


def test_nothing_to_resume(run: Run, data: Path, tmp_path: Path) -> None:
    result = run("train", data, "-o", tmp_path / "out.safetensors", "--steps", 1, "--resume", *TINY)
    assert result.exit_code == 1
    assert "nothing to resume" in result.stderr
