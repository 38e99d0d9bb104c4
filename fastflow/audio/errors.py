"""The error of everything that reads or writes audio."""

from __future__ import annotations


class AudioError(ValueError):
    """An audio file or signal that cannot be used; the message names it and the reason."""
