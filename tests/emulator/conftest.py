"""The emulator, built on first use."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from fastflow.ops import registry
from tests.emulator import library
from tests.ops.conftest import poisoned_memory

__all__ = ["emulator", "fresh", "poisoned_memory"]


@pytest.fixture(scope="module")
def emulator() -> Iterator[ModuleType]:
    """The emulator's Python module. Backend "cuda" runs on it, on CPU tensors, until the module's tests have run."""
    module = library.load()
    registry.emulate()
    yield module
    registry._emulated = False


@pytest.fixture
def fresh(emulator: ModuleType) -> Iterator[None]:
    """Four multiprocessors, the plainest schedule, no statistics; all faults are taken back afterwards."""
    emulator.device(capability=90, multiprocessors=4)
    emulator.schedule("in order", 0, delivery="early")
    emulator.statistics()
    yield
    emulator.heal()
    emulator.device()
    emulator.schedule("in order", 0)
