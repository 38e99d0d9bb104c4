"""Small programs for the emulator, for its tests: each thread runs the steps that it is given.

The toy "litmus" of `csrc/emulator/toys.cu` runs them; it lists what a step can be.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator import library

Array = NDArray[Any]
TOYS = "csrc/emulator/toys.cu"

SCHEDULES = (
    ("in order", 0, "early"),
    ("in order", 1, "late"),
    ("reverse", 0, "late"),
    ("one warp first", 1, "early"),
    ("one warp last", 0, "late"),
    ("random", 1, "random"),
    ("random", 2, "random"),
)
"""Order of threads, its seed, and when things happen that happen by themselves."""


Steps = list[tuple[Any, ...]]


class Litmus(NamedTuple):
    """Threads that run these steps; where nothing is said of a thread, it does nothing."""

    name: str
    programs: dict[Any, Steps]  # by (block, warp) or (block, warp, lane or several)
    message: str = ""  # of the error that it must give; none where it is right
    threads: int = 64
    cluster: int = 1
    schedules: tuple[tuple[str, int, str], ...] = SCHEDULES

    def run(self, emulator: Any) -> Array:
        """Return what the operations returned: [blocks, threads, steps]."""
        names = {name: i for i, name in enumerate(emulator.litmus_operations())}
        blocks = max(self.cluster, 1 + max(where[0] for where in self.programs))
        count = max(len(steps) for steps in self.programs.values())
        steps = np.zeros((blocks, self.threads, count, 4), np.int32)
        for (block, warp, *lanes), program in self.programs.items():
            chosen = lanes[0] if lanes else range(min(32, self.threads - 32 * warp))
            for i, (name, *operands) in enumerate(program):
                values = [names[name], *operands, 0, 0, 0][:4]
                steps[block, [32 * warp + lane for lane in np.atleast_1d(chosen)], i] = values
        results = np.zeros((blocks, self.threads, count), np.uint32)
        memory = np.zeros(4096 + 128, np.uint8)
        memory = memory[-memory.ctypes.data % 128 :][:4096]
        shape = {"blocks": blocks, "threads": self.threads, "shared_bytes": 16384, "cluster": self.cluster}
        emulator.toy("litmus", [steps, results, memory], [count], **shape)
        return results


def of_cluster(
    name: str, programs: dict[Any, Steps], message: str = "", schedules: tuple[tuple[str, int, str], ...] = SCHEDULES
) -> Litmus:
    """A cluster of two blocks of one warp."""
    return Litmus(name, programs, message, 32, 2, schedules)


def of_warpgroup(name: str, programs: dict[Any, Steps], message: str = "") -> Litmus:
    return Litmus(name, programs, message, 128)


def check(emulator: Any, litmus: Litmus) -> list[str]:
    """Return the errors' messages under all schedules."""
    messages = []
    for name, seed, delivery in litmus.schedules:
        emulator.schedule(name, seed, delivery=delivery)
        if not litmus.message:
            litmus.run(emulator)
            continue
        with pytest.raises(emulator.EmulationError, match=litmus.message) as error:
            litmus.run(emulator)
        messages.append(str(error.value))
        assert messages[-1].startswith("toys::litmus: ")
        lines = (library.ROOT / TOYS).read_text().splitlines()
        for kind, line in re.findall(rf"(\w+) at {TOYS}:(\d+)", messages[-1]):
            assert any(kind in text for text in lines[int(line) - 2 : int(line) + 2]), messages[-1]
    return messages


ALL = range(32)
REST = range(1, 32)

BY_ALL: Steps = [("sync_threads",)]
BARRIER = 8192  # where an mbarrier is, behind the boxes


def one(*steps: tuple[Any, ...]) -> dict[Any, Steps]:
    """A program of thread 0."""
    return {(0, 0, 0): list(steps)}


def both(first: Steps, second: Steps) -> dict[Any, Steps]:
    """Thread 0 and thread 32, of another warp, after the first has initialised an mbarrier for both of them."""
    made: Steps = [("mbarrier_init", BARRIER, 2), ("fence_mbarrier_init",)]
    return {
        (0, 0, 0): [*made, *BY_ALL, *first],
        (0, 0, REST): BY_ALL,
        (0, 1, 0): [*BY_ALL, *second],
        (0, 1, REST): BY_ALL,
    }


def with_tiles(*steps: tuple[Any, ...], last_warp: Steps | None = None) -> dict[Any, Steps]:
    """A warpgroup, after it has written two tiles of 8192 bytes that wgmma reads."""
    programs: dict[Any, Steps] = {}
    for thread in range(128):
        stores: Steps = [("store_shared 16", 16 * (thread + 128 * i), 0) for i in range(8)]
        rest = list(steps) if last_warp is None or thread < 96 else last_warp
        programs[0, thread // 32, thread % 32] = [*stores, ("fence_proxy_async_shared",), *BY_ALL, *rest]
    return programs


def in_cluster(first: Steps, second: Steps, start: Steps | None = None) -> dict[Any, Steps]:
    """Thread 0 of each of two blocks, which know of each other."""
    start = [("cluster_sync",)] if start is None else start
    rest: dict[Any, Steps] = {(block, 0, REST): start for block in (0, 1)}
    return {**rest, (0, 0, 0): [*start, *first], (1, 0, 0): [*start, *second]}


def boxed(expected: int, *steps: tuple[Any, ...], to: int = 0, fence: bool = True) -> dict[Any, Steps]:
    made: Steps = [("mbarrier_init", BARRIER, 1), *([("fence_mbarrier_init",)] if fence else [])]
    return one(*made, ("mbarrier_arrive_expect", BARRIER, expected), ("tma_load", to, BARRIER, 0), *steps)


EARLY, LATE = SCHEDULES[:1], SCHEDULES[1:2]
STORED = ("store_shared", 0, 1)
PRODUCT: Steps = [("wgmma_fence",), ("wgmma", 0, 8192, 0), ("wgmma_commit",)]
OUTSIDE = "shared memory from .* is outside of the block's, from 0x400 to 0x4400"
NO_TENSOR = "bytes of global memory at .* are in none of the kernel's tensors"
