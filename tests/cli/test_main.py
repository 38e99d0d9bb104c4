"""The program itself: help, version, both ways to start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import Result

import fastflow
from fastflow.cli import info as info_command
from fastflow.cli.main import COMMANDS

Run = Callable[..., Result]


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert fastflow.__version__ in result.output


def test_python_m_fastflow_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "fastflow", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: fastflow ")
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: fastflow {name} " in result.output


def test_commands_are_imported_without_the_heavy_modules() -> None:
    code = (
        "import sys, importlib\n"
        f"for name in {list(COMMANDS)!r}: importlib.import_module('fastflow.cli.' + name)\n"
        "print(*[m for m in ('librosa', 'soundfile', 'matplotlib', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_ctrl_c_is_130_in_every_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info_command, "collect", interrupted)
    result = run("info")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_an_unknown_command_is_named(run: Run) -> None:
    result = run("sing")
    assert result.exit_code == 2
    assert "No such command 'sing'" in result.output
