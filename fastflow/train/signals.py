"""SIGINT and SIGTERM as a wish to stop, granted between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Whether one of the signals has come."""

    requested = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a flag, so that no step is torn apart. A second signal acts at once."""
    stop = Stop()
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)
        previous.clear()

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals cannot be taken over, and none arrive here
        previous.clear()
    try:
        yield stop
    finally:
        restore()
