"""What a killed run of `fastflow train` leaves and goes on from: WHOLE in one go, PARTS with kills at random moments.

Run as `killed.py SEED WHOLE.safetensors PARTS.safetensors ARGUMENTS...`. Every run is a fork of this process, which has
imported all that is slow to import. Prints at which steps PARTS was killed, as JSON, the last attempt being left alone.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import fastflow.models
import fastflow.train  # noqa: F401
from fastflow.audio import MelSpectrogram
from fastflow.cli.main import main as cli

KILLS = 4
SAVES = 2  # at most so many are waited for before a kill


def start(arguments: list[str]) -> int:
    """Begin a run, and return its process."""
    if child := os.fork():
        return child
    status = 1
    try:
        cli(["train", *arguments], standalone_mode=False)
        status = 0
    finally:
        os._exit(status)


def kill_at_some_moment(child: int, state: Path, chance: random.Random) -> bool:
    """Wait for a few saves and part of the time to the next one, then kill; False if the run ended before, and well."""
    times, last = [time.monotonic()], written(state)
    wanted = chance.randint(1, SAVES)
    while len(times) <= wanted:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
        if written(state) != last:
            last = written(state)
            times.append(time.monotonic())
        time.sleep(0.001)
    # the start takes longer than a save: it is no measure where there is another
    interval = min(b - a for a, b in itertools.pairwise(times))
    time.sleep(chance.random() * min(interval, 0.2))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)


def written(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def main() -> None:
    MelSpectrogram()  # which imports librosa
    chance = random.Random(int(sys.argv[1]))
    whole, parts = map(Path, sys.argv[2:4])
    _, status = os.waitpid(start([*sys.argv[4:], "-o", str(whole)]), 0)
    assert status == 0, status
    state, steps = parts.with_suffix(".state.pt"), []
    for _ in range(KILLS):
        # before the first state is whole, the weights may be there, and are no beginning to go on from
        child = start([*sys.argv[4:], "-o", str(parts), "--resume" if state.exists() else "--overwrite"])
        if not kill_at_some_moment(child, state, chance):
            break
        steps.append(torch.load(state, weights_only=True)["progress"]["step"])
    else:
        _, status = os.waitpid(start([*sys.argv[4:], "-o", str(parts), "--resume"]), 0)
        assert status == 0, status
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
