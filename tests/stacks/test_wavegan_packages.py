"""The generators of ESPnet and Coqui, shrunk; see test_packages.py."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import stacks
from benchmarks.stacks import made
from fastflow.stacks import accelerate
from tests.stacks.test_packages import is_as_the_original

pytestmark = pytest.mark.packages


@pytest.mark.parametrize(
    ("maker", "stack"),
    [
        (stacks.espnet_wavegan, "ESPnet, Parallel WaveGAN"),
        (stacks.coqui_wavegan, "Coqui TTS, Parallel WaveGAN"),
    ],
)
def test_generators_are_the_original(maker: Any, stack: str) -> None:
    report = is_as_the_original(made(maker, True), 1)
    assert [(e.path, e.op, e.stack) for e in report] == [("conv_layers", "wn", stack)]


def test_espnets_vits_is_not_taken_for_a_wavegan() -> None:
    assert {e.stack for e in accelerate(made(stacks.espnet_vits, True).model)} == {"ESPnet VITS"}
