"""`fastflow info` shows everything, also when parts are broken."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from click.testing import Result

import fastflow
from fastflow import _native
from fastflow.ops import registry

Run = Callable[..., Result]


def test_info_names_versions_libraries_and_backends(run: Run) -> None:
    result = run("info")
    assert result.exit_code == 0
    for text in (
        fastflow.__version__,
        platform.python_version(),
        torch.__version__,
        "compiled libraries",
        "backends",
    ):
        assert text in result.output
    for name in ("reference", "cpu", "triton", "cuda"):
        assert f"  {name}" in result.output


def test_json_is_the_same_in_json(run: Run) -> None:
    facts = json.loads(run("info", "--json").output)
    assert facts["versions"]["fastflow"] == fastflow.__version__
    assert set(facts["compiled"]) == {"cpu", "cuda"}
    assert [row["name"] for row in facts["backends"]] == ["reference", "cpu", "triton", "cuda"]
    assert facts["backends"][0]["can_run"] is True
    for row in facts["backends"]:
        assert row["reason"]


def test_a_library_that_does_not_load_is_shown_with_its_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"cpu": "fastflow/_cpu.so: undefined symbol: foo", "cuda": "fastflow/_cuda.so is not built"}
    monkeypatch.setattr(_native, "status", lambda: reasons)
    result = run("info")
    assert result.exit_code == 0
    for reason in reasons.values():
        assert result.output.count(reason) == 2  # under libraries and under backends
    rows = {row["name"]: row for row in json.loads(run("info", "--json").output)["backends"]}
    assert rows["reference"]["can_run"] is True
    assert rows["cpu"]["can_run"] is False


@pytest.mark.parametrize(("module", "name"), [(_native, "status"), (_native, "load"), (registry, "status")])
def test_a_part_that_fails_does_not_hide_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    def broken() -> None:
        raise ImportError("broken on purpose")

    monkeypatch.setattr(module, name, broken)
    result = run("info")
    assert result.exit_code == 0
    assert "ImportError: broken on purpose" in result.output
    assert torch.__version__ in result.output


def test_operations_that_cannot_be_registered() -> None:
    # A fresh process, where importing the registry fails as it would with an incompatible torch.
    code = (
        "import sys, torch; torch.library.Library = None; torch.library.custom_op = None\n"
        "from fastflow.cli.main import main; main(['info'], prog_name='fastflow')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the operations could not be registered" in done.stdout
    assert fastflow.__version__ in done.stdout
