from __future__ import annotations

import pytest
import torch

from fastflow.stacks import accelerate
from tests.stacks.checks import randomise, replaced_equals_original
from tests.stacks.vits_twin import NORMS, WN


def masked(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None].float()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gin", [0, 3])
def test_wn_is_the_original(norm: str, gin: int) -> None:
    torch.manual_seed(0)
    module = randomise(WN(8, 5, 2, 3, gin, norm=norm))
    x = torch.randn(2, 8, 21, requires_grad=True)
    g = torch.randn(2, gin, 1, requires_grad=True) if gin else None
    inputs = [x, *([] if g is None else [g])]
    report = replaced_equals_original(module, lambda: module(x, masked(21, 13), g), inputs, 1)
    assert [e.path for e in report] == [""] and report.entries[0].op == "wn"


def test_dropout_in_training_is_the_originals() -> None:
    torch.manual_seed(0)
    module = WN(8, 5, 1, 2, p_dropout=0.5)
    x, mask = torch.randn(1, 8, 30), torch.ones(1, 1, 30)

    def call() -> torch.Tensor:
        torch.manual_seed(1)
        return module(x, mask)

    expected = call()
    accelerate(module, strict=True)
    assert torch.equal(call(), expected)
