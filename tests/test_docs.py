"""README's examples run, its commands parse, and its table of environment variables is complete."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import torch

import fastflow
from fastflow.cli.main import COMMANDS, main
from fastflow.models import FloWaveNet, WaveGlow
from tests.stacks import vits_twin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(fastflow.__file__).parent / "assets" / "demo.flac", "speech.wav")
    tiny = WaveGlow(80, 2, 8, 4, 2, {"n_layers": 1, "n_channels": 8, "kernel_size": 3})
    torch.save({"state_dict": tiny.state_dict()}, "waveglow_256channels.pt")
    torch.save({"state_dict": FloWaveNet(1, 80, 2, 1, 1, filter_size=4).state_dict()}, "flowavenet.pth")
    names: dict[str, object] = {"tts": vits_twin.ResidualCouplingBlock(8, 8, 3, 1, 2)}
    examples = blocks("python")
    assert len(examples) >= 4
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert Path("resynthesised.wav").exists()
    assert Path("waveglow_256channels.safetensors").exists()
    assert names["same_bits"] is True


def test_commands_parse() -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fastflow ")]
    assert {command[0] for command in commands} == set(COMMANDS)
    for name, *arguments in commands:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, arguments)  # raises for a wrong option or a missing argument


def test_options_of_vocode_are_all_in_the_table() -> None:
    command = main.get_command(click.Context(main), "vocode")
    assert command is not None
    options = {name for option in command.params for name in option.opts if name.startswith("--")}
    documented = set(re.findall(r"^\| `(--[a-z]+)", README, re.MULTILINE))
    assert documented == options - {"--output"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {line.split()[1] for block in blocks("console") for line in block.splitlines() if line.startswith("make ")}
    assert used
    assert used <= targets


def test_the_table_of_environment_variables_is_complete() -> None:
    files = [ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run"]
    for folder, suffixes in (
        ("fastflow", {".py"}),
        ("scripts", {".py"}),
        ("csrc", {".h", ".cpp", ".cu", ".cuh"}),
    ):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    read = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"(?:environ\.get\(|environ\[|getenv\()\s*[\"'](\w+)", text))
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):  # there, such names are macros
            read |= set(re.findall(r"(?<!-D)\bFASTFLOW_[A-Z_]+\b", text))
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert documented == read
