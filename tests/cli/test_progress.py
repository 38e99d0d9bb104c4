"""The bar counts flows, in every file, and leaves nothing on the model."""

from __future__ import annotations

import pytest
import torch

from fastflow.cli import progress
from fastflow.models import WaveGlow


class Bar:
    """What `progress` uses of tqdm."""

    def __init__(self, **options: object) -> None:
        self.options = options
        self.n = 0
        self.seen: list[int] = []
        bars.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, *_: object, **__: object) -> None:
        self.seen.append(self.n)

    def update(self, n: int) -> bool:
        self.n += n
        return True  # as tqdm does when it has redrawn itself


bars: list[Bar] = []


def test_it_moves_with_every_flow_and_over_files_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.tqdm", Bar)
    model = WaveGlow(80, 3, 8, 4, 2, {"n_layers": 1, "n_channels": 4, "kernel_size": 3})
    bars.clear()
    for item in progress.progress(["good", "bad", "good"], model):
        if item == "good":
            model.infer(torch.zeros(1, 80, 2))
    (bar,) = bars
    assert bar.options["total"] == 9
    assert bar.options["disable"] is True  # tests have no terminal
    assert bar.seen == [0, 3, 3]
    assert bar.n == 9
    assert all(not net._forward_hooks for net in model.WN)
