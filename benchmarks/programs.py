"""Runs programs side by side, each with all that it starts, for a limited time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Done(NamedTuple):
    """How a program ended."""

    status: int | None  # None: it was not through in time, and was ended
    output: str  # both streams; empty where it printed as it went


def run(
    commands: Sequence[Sequence[str]],
    seconds: float,
    *,
    environment: Mapping[str, str] | None = None,
    print_at_once: bool = False,
) -> list[Done]:
    """Run programs in the project's folder until they end, or until `seconds` are over.

    Each is the head of a process group, which is ended as a whole: a sanitizer's Python would go on without it, and
    hold the GPU.
    """
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(i) for i in range(len(commands))]
        running = []
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                output = None if print_at_once else file
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT if output else None,
                        start_new_session=True,
                    )
                )
        try:
            statuses = [_wait(process, end) for process in running]
        finally:
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return [Done(status, log.read_text(errors="replace")) for status, log in zip(statuses, logs, strict=True)]


def _wait(process: subprocess.Popen[bytes], end: float) -> int | None:
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in this Python."""
    return [sys.executable, "-m", module, *arguments]
