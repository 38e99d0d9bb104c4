"""Processes that answer: what must not share an allocator, or a version of fastflow, runs in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


class Ended(Exception):
    """The process is gone; the message is a clause that says why."""


class Process:
    """A Python module run beside this one, which reads and writes a line of JSON at a time."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=folder,
            env=os.environ | dict(environment or {}),
        )

    def answer(self) -> Any:
        """Return what it writes next.

        Raises:
            Ended: it wrote nothing.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        said = [text for text in self._errors.read().splitlines() if text.strip()]
        raise Ended(f"its process ended: {said[-1] if said else 'it said nothing'}")

    def ask(self, question: Any) -> Any:
        """Write a line and return the answer; raises as `answer` does."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Answers:
    """The other end: questions from standard input, answers to standard output, where nothing else may write."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes elsewhere

    def send(self, value: Any) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()

    def questions(self) -> Iterator[Any]:
        for line in sys.stdin:
            yield json.loads(line)
