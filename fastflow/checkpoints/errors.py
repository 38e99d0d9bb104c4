"""The error of everything that reads or writes checkpoints."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written, or is refused; the message has the file and every
    reason."""


class RefusedGlobalError(CheckpointError):
    """A pickle that refers to a class or function which no checkpoint needs; nothing of it was run."""


def quote(name: object, limit: int = 120) -> str:
    """A name out of a file, made safe to print: escaped, in backquotes, cut if longer than any real one."""
    text = name if isinstance(name, str) else type(name).__name__
    escaped = text[:limit].encode("unicode_escape").decode("ascii")
    return f"`{escaped}{'…' if len(text) > limit else ''}`"
