from __future__ import annotations

from typing import Any

import pytest
import torch

from fastflow.stacks import accelerate, couplings, glow_tts
from tests.stacks.checks import close, inputs_of, masked, randomise, replaced_equals_original, tensors
from tests.stacks.glow_tts_twin import ActNorm, CouplingBlock, FlowSpecDecoder, InvConvNear


def off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the blocks think that they are on a GPU."""
    monkeypatch.setattr(glow_tts, "on_cpu", lambda module: False)
    monkeypatch.setattr(glow_tts, "formula_is_faster", lambda *_: False)
    monkeypatch.setattr(couplings, "formula_is_faster", lambda *_: False)


@pytest.mark.parametrize(
    ("norm", "reverse", "elsewhere"),
    [("hooks", False, False), ("parametrizations", True, False), ("hooks", True, True), ("plain", False, True)],
)
def test_decoder_is_the_original(norm: str, reverse: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if elsewhere:
        off_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module = randomise(FlowSpecDecoder(4, 8, 1, 2, gin=3, norm=norm))
    x, g = inputs_of((2, 4, 22), (2, 3, 1))
    call: Any = lambda: module(x, masked(22, 14), g, reverse=reverse)  # noqa: E731
    report = replaced_equals_original(module, call, [x, g], 4 if elsewhere else 2)
    expected = {"wn", "invconv1x1"} | ({"affine_coupling", "actnorm"} if elsewhere else set())
    assert {e.op for e in report.replaced} == expected
    assert all(e.reason == couplings.ON_A_CPU and not e.refused for e in report.left)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("sigmoid_scale", [False, True])
def test_coupling_is_the_original(
    reverse: bool, with_mask: bool, sigmoid_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module = randomise(CouplingBlock(8, 6, 5, 2, 2, sigmoid_scale=sigmoid_scale))
    (x,) = inputs_of((2, 8, 21))
    mask = masked(21, 13) if with_mask else None
    replaced_equals_original(module, lambda: module(x, mask, reverse=reverse), [x], 2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("kind", [ActNorm, InvConvNear])
def test_small_blocks_without_mask_are_the_original(
    kind: Any, reverse: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if elsewhere:
        off_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module = randomise(kind(8))
    (x,) = inputs_of((2, 8, 21))
    expected = 1 if elsewhere or kind is InvConvNear else 0
    replaced_equals_original(module, lambda: module(x, reverse=reverse), [x], expected)


def test_inverse_follows_the_weight_and_what_the_user_stored() -> None:
    torch.manual_seed(0)
    module = InvConvNear(8).eval()
    x = torch.randn(1, 8, 9)
    accelerate(module, strict=True)
    with torch.no_grad():
        before = module(x, reverse=True)[0]
        module.weight.mul_(2)
        torch.testing.assert_close(module(x, reverse=True)[0], before / 2)
        module.store_inverse()
        module.weight.mul_(2)
        torch.testing.assert_close(module(x, reverse=True)[0], before / 2)  # stored is stored
    assert InvConvNear(8, no_jacobian=True)(x)[1] == 0


@pytest.mark.parametrize("kind", [ActNorm, InvConvNear])
def test_replicas_of_data_parallel_have_attributes_for_parameters(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    off_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module, x = randomise(kind(8)).eval(), torch.randn(1, 8, 9)
    accelerate(module, strict=True)
    replica = module._replicate_for_data_parallel()
    for name, p in module.named_parameters():
        setattr(replica, name, p.detach().clone())
    with torch.no_grad():
        for reverse in (False, True):
            close(tensors(replica(x, reverse=reverse)), tensors(module(x, reverse=reverse)))


def test_actnorm_that_has_not_started_is_left() -> None:
    (entry,) = accelerate(ActNorm(8, ddi=True))
    assert entry.refused and entry.reason == "it has not seen the data that it starts from"


def test_actnorm_may_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    off_the_cpu(monkeypatch)
    torch.manual_seed(0)
    module, twin, x = ActNorm(8), ActNorm(8), 3 * torch.randn(2, 8, 50) + 1
    accelerate(module, strict=True)
    module.initialized = twin.initialized = False
    torch.testing.assert_close(module(x), twin(x))
    assert module.initialized and torch.equal(module.logs, twin.logs)
