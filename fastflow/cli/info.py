"""``fastflow info``: what is installed and what can run. Works when almost nothing does."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from typing import Any

import click

from fastflow._version import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Show versions, what is compiled and which backends can run, with the reasons of those that cannot."""
    facts = collect()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, version in facts["versions"].items():
        click.echo(f"{name:<12} {version or 'not installed'}")
    click.echo(f"{'device':<12} {', '.join(facts['devices'])}")
    click.echo("\ncompiled libraries")
    for name, reason in facts["compiled"].items():
        click.echo(f"  {name:<10} {'loaded' if reason is None else 'no: ' + reason}")
    click.echo("\nbackends")
    for row in facts["backends"]:
        click.echo(f"  {row['name']:<10} {'yes' if row['can_run'] else 'no'}: {row['reason']}")


def collect() -> dict[str, Any]:
    """Everything ``info`` shows. A part that fails is replaced by its error: the rest is still shown."""
    versions = {"fastflow": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts: dict[str, Any] = {
        "versions": versions | {name: _version(name) for name in ("torch", "triton", "numpy")},
        "executable": sys.executable,
    }
    # A broken library may raise anything at import: this is the one command that must survive all of it.
    try:
        facts["devices"] = _devices()
    except Exception as error:
        facts["devices"] = [f"unknown: {_reason(error)}"]
    try:
        from fastflow import _native

        _native.load()
        facts["compiled"] = _native.status()
    except Exception as error:
        facts["compiled"] = {"cpu": _reason(error), "cuda": _reason(error)}
    try:
        from fastflow.ops import registry

        facts["backends"] = [
            {"name": name, "can_run": can_run, "reason": reason} for name, can_run, reason in registry.status()
        ]
    except Exception as error:
        reason = f"the operations could not be registered: {_reason(error)}"
        facts["backends"] = [
            {"name": name, "can_run": False, "reason": reason} for name in ("reference", "cpu", "triton", "cuda")
        ]
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    cpu = f"cpu ({torch.get_num_threads()} threads)"
    return [cpu] + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
