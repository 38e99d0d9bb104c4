"""SIGINT and SIGTERM as a wish to stop, granted between two steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TOGETHER = 5.0
"""Seconds within which signals are one wish: torchrun passes on what the whole group has got already."""


class Stop:
    """Whether one of the signals has come."""

    requested = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a flag, so that no step is torn apart.

    One that comes more than TOGETHER after the first acts at once.
    """
    stop = Stop()
    first = 0.0
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)
        previous.clear()

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            stop.requested, first = True, time.monotonic()
        elif time.monotonic() - first > TOGETHER:
            restore()
            signal.raise_signal(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals cannot be taken over, and none arrive here
        previous.clear()
    try:
        yield stop
    finally:
        restore()
