from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastflow.stacks import accelerate, couplings, vits
from fastflow.stacks.vits import Coupling
from tests.stacks.checks import inputs_of, masked, randomise, replaced_equals_original
from tests.stacks.vits_twin import NORMS, WN, ResidualCouplingBlock, ResidualCouplingLayer


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gin", [0, 3])
def test_wn_is_the_original(norm: str, gin: int) -> None:
    torch.manual_seed(0)
    module = randomise(WN(8, 5, 2, 3, gin, norm=norm))
    x, g = inputs_of((2, 8, 21), (2, gin, 1) if gin else None)
    report = replaced_equals_original(module, lambda: module(x, masked(21, 13), g), [x, g], 1)
    assert [e.path for e in report] == [""] and report.entries[0].op == "wn"


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 127])
def test_wn_at_awkward_lengths(length: int) -> None:
    """Below four steps the original runs: a kernel would spend its time on packing weights."""
    torch.manual_seed(0)
    module = randomise(WN(8, 5, 1, 2)).eval()
    x, mask = torch.randn(2, 8, length), torch.ones(2, 1, length)
    if length == 0:
        accelerate(module, strict=True)
        with pytest.raises(RuntimeError):  # PyTorch's own refusal: the original runs
            module(x, mask)
        return
    with torch.no_grad():
        expected = module(x, mask)
        accelerate(module, strict=True)
        torch.testing.assert_close(module(x, mask), expected, rtol=1e-4, atol=1e-5)


def test_wn_takes_conditioning_per_step_one_for_all_and_none() -> None:
    torch.manual_seed(0)
    module = randomise(WN(8, 5, 1, 2, 3)).eval()
    x, one_mask = torch.randn(2, 8, 9), torch.ones(1, 1, 9)
    conditions = [None, torch.randn(2, 3, 1), torch.randn(1, 3, 1), torch.randn(2, 3, 9)]
    with torch.no_grad():
        expected = [module(x, one_mask, g) for g in conditions]
        accelerate(module, strict=True)
        for g, out in zip(conditions, expected, strict=True):
            torch.testing.assert_close(module(x, one_mask, g), out, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_is_the_originals() -> None:
    torch.manual_seed(0)
    module = WN(8, 5, 1, 2, p_dropout=0.5)
    x, mask = torch.randn(1, 8, 30), torch.ones(1, 1, 30)

    @torch.no_grad()
    def call() -> Tensor:
        torch.manual_seed(1)
        return module(x, mask)

    expected = call()
    accelerate(module, strict=True)
    assert torch.equal(call(), expected)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_the_dropouts_own_mode_counts(block: bool, drops: bool) -> None:
    """As where uncertainty is sampled with dropout in evaluation."""
    torch.manual_seed(0)
    module = randomise(WN(8, 5, 1, 2, p_dropout=0.5)).train(block)
    module.drop.train(drops)
    x, mask = torch.randn(1, 8, 30), torch.ones(1, 1, 30)
    with torch.no_grad(), mock.patch.object(vits.WN, "_stack", autospec=True, side_effect=vits.WN._stack) as ours:
        torch.manual_seed(1)
        expected = module(x, mask)
        accelerate(module, strict=True)
        ours.reset_mock()
        torch.manual_seed(1)
        torch.testing.assert_close(module(x, mask), expected, rtol=1e-4, atol=1e-5)
        assert ours.called != drops


def test_autocast_gives_the_dtype_of_the_input() -> None:
    """As the original, whose sum of skips starts from zeros like it."""
    module, x, mask = WN(8, 5, 1, 2).eval(), torch.randn(1, 8, 30), torch.ones(1, 1, 30)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(x, mask)
        accelerate(module, strict=True)
        assert module(x, mask).dtype == expected.dtype == torch.float32


@pytest.mark.parametrize("reverse", [False, True])
def test_flow_is_the_original(reverse: bool) -> None:
    """Couplings without a scale and their stacks are replaced on a CPU as well."""
    torch.manual_seed(0)
    module = randomise(ResidualCouplingBlock(6, 8, 2, 2, 3))
    x, g = inputs_of((2, 6, 21), (2, 3, 1))
    mask = masked(21, 13)
    report = replaced_equals_original(module, lambda: module(x, mask, g, reverse=reverse), [x, g], 4)
    assert [(e.path, e.op, e.backend) for e in report][:2] == [
        ("flows.0", "affine_coupling", "reference"),
        ("flows.0.enc", "wn", report.entries[1].backend),
    ]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_coupling_is_the_original(
    reverse: bool, mean_only: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale it is left on a CPU; `elsewhere`, as on a GPU, both run as the operation."""
    monkeypatch.setattr(Coupling, "no_gain", classmethod(lambda cls, module: None))
    if elsewhere:
        monkeypatch.setattr(couplings, "formula_is_faster", lambda *_: False)
    torch.manual_seed(0)
    module = randomise(ResidualCouplingLayer(6, 8, 5, 1, 2, mean_only=mean_only))
    x, mask = *inputs_of((2, 6, 21)), masked(21, 13)
    replaced_equals_original(module, lambda: module(x, mask, reverse=reverse), [x], 2)


def test_coupling_with_a_scale_is_left_on_a_cpu_and_strict_does_not_mind() -> None:
    report = accelerate(ResidualCouplingLayer(6, 8, 5, 1, 2), strict=True)
    (left,) = report.left
    assert left.path == "" and left.reason == couplings.ON_A_CPU and not left.refused


class WNOfRVC(WN):
    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, x_mask, g)


@pytest.mark.parametrize("length", [21, 3])
def test_wn_of_rvc_takes_no_kwargs(length: int) -> None:
    torch.manual_seed(0)
    module = randomise(WNOfRVC(8, 5, 2, 3, 3))
    x, g = inputs_of((2, 8, length), (2, 3, 1))
    report = replaced_equals_original(module, lambda: module(x, masked(length, 2), g), [x, g], 1)
    assert report.entries[0].op == "wn"


class OfRVC(ResidualCouplingLayer):
    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None, reverse: bool = False) -> Any:
        y = super().forward(x, x_mask, g, reverse)
        return (y, torch.zeros([1])) if reverse else y


@pytest.mark.parametrize("reverse", [False, True])
def test_coupling_of_rvc_returns_a_zero(reverse: bool) -> None:
    module = randomise(OfRVC(6, 8, 5, 1, 2, mean_only=True))
    x, mask = *inputs_of((2, 6, 21)), masked(21, 13)
    report = replaced_equals_original(module, lambda: module(x, mask, reverse=reverse), [x], 2)
    assert report.entries[0].stack == "RVC"


def test_one_wn_shared_by_all_couplings_stays_shared() -> None:
    """As in so-vits-svc with `flow_share_parameter`."""
    torch.manual_seed(0)
    module = randomise(ResidualCouplingBlock(6, 8, 2, 2))
    module.flows[2].enc = module.flows[0].enc
    x, mask = *inputs_of((2, 6, 21)), masked(21, 13)
    report = replaced_equals_original(module, lambda: module(x, mask, reverse=True), [x], 3)
    shared = next(e for e in report if e.op == "wn")
    assert (shared.path, shared.also) == ("flows.0.enc", ("flows.2.enc",))
    assert module.flows[2].enc is module.flows[0].enc


def test_depthwise_layers_are_left_and_named() -> None:
    wn = WN(8, 5, 1, 2)
    depth = torch.nn.Conv1d(8, 8, 5, padding=2, groups=8)
    wn.in_layers[1] = torch.nn.Sequential(depth, torch.nn.Conv1d(8, 16, 1))  # so-vits-svc's `use_depthwise_conv`
    report = accelerate(torch.nn.ModuleDict({"wn": wn}))
    assert not report.replaced and type(wn) is WN
    assert [(e.path, e.reason) for e in report.refused] == [
        ("wn", "`in_layers.1` is a Sequential, not a plain convolution")
    ]


class Transformer(torch.nn.Module):
    """In place of one, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, x_mask: Tensor, g: Tensor | None = None) -> Tensor:
        return torch.relu(self.mix(x * x_mask)) * x_mask


class TransformerCouplingBlock(ResidualCouplingBlock):
    pass


def test_of_a_transformer_flow_the_couplings_are_replaced() -> None:
    """As MeloTTS's and Bert-VITS2's: the flow is named once, with why its networks are left."""
    torch.manual_seed(0)
    module = TransformerCouplingBlock(6, 8, 2, 1)
    module.flows[0].enc = Transformer()
    randomise(module)
    x, mask = *inputs_of((2, 6, 21)), masked(21, 13)
    report = replaced_equals_original(module, lambda: module(x, mask, reverse=True), [x], 1)
    assert [(e.path, e.op or e.reason) for e in report] == [
        ("", "its networks are transformers"),
        ("flows.0", "affine_coupling"),
    ]
