from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastflow.stacks import accelerate
from fastflow.stacks import flowavenet as stack
from fastflow.stacks.couplings import ON_A_CPU
from tests.stacks.checks import close, randomise, replaced_equals_original
from tests.stacks.flowavenet_twin import ActNorm, Flows, Wavenet
from tests.stacks.vits_twin import NORMS


def flows(affine: bool, norm: str) -> Flows:
    torch.manual_seed(0)
    module = randomise(Flows(8, 12, 6, 3, affine, NORMS[norm]))
    for flow in module.flows:
        flow.actnorm.initialized = True
        with torch.no_grad():
            flow.actnorm.loc.normal_()
            flow.actnorm.scale.normal_()
    return module


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace also what would be left because a CPU gains nothing."""
    for block in stack.BLOCKS:
        monkeypatch.setattr(block, "no_gain", lambda module: None)


@pytest.mark.parametrize(
    ("affine", "norm"), [(True, "hooks"), (False, "hooks"), (True, "parametrizations"), (True, "plain")]
)
def test_both_directions_are_the_original(affine: bool, norm: str) -> None:
    module = flows(affine, norm)
    x, c = torch.randn(2, 8, 17, requires_grad=True), torch.randn(2, 12, 17, requires_grad=True)
    report = replaced_equals_original(module, lambda: module(x, c), [x, c], 6)
    assert sorted(e.op for e in report) == sorted(2 * ["actnorm", "affine_coupling", "wn"])
    report.revert()
    replaced_equals_original(module, lambda: module.reverse(x, c), [x, c], 6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_network_alone(causal: bool) -> None:
    torch.manual_seed(0)
    net = randomise(Wavenet(3, 6, 3, 8, 5, NORMS["hooks"], causal=causal))
    x, c = torch.randn(2, 3, 21, requires_grad=True), torch.randn(2, 5, 21, requires_grad=True)
    report = replaced_equals_original(net, lambda: net(x, c), [x, c], 1)
    assert report.entries[0].path == "res_blocks"
    assert len(net.res_blocks) == 3 and [path for path, _ in net.res_blocks.named_children()] == ["0", "1", "2"]


def test_actnorm_takes_its_start_from_data_as_before() -> None:
    x = 3 + 2 * torch.randn(2, 4, 50)
    plain, ours = ActNorm(4), ActNorm(4)
    accelerate(ours, strict=True)
    assert not ours.initialized
    for _ in range(2):
        close(list(ours(x)), list(plain(x)))
    assert ours.initialized and torch.equal(ours.loc, plain.loc) and torch.equal(ours.scale, plain.scale)


def test_actnorm_can_be_without_log_determinant() -> None:
    plain = ActNorm(4)
    plain.initialized, plain.logdet = True, False
    x = torch.randn(2, 4, 9)
    expected = plain(x)
    accelerate(plain, strict=True)
    close([plain(x)], [expected])


def test_blocks_without_skips_are_left() -> None:
    net = Wavenet(3, 6, 2, 8, 5, NORMS["plain"])
    for block in net.res_blocks:
        block.skip = False
        del block.skip_conv
    report = accelerate(net)
    assert "no skips" in report.left[0].reason


def test_hooks_on_blocks_run() -> None:
    net = randomise(Wavenet(3, 6, 2, 8, 5, NORMS["plain"])).eval()
    x, c = torch.randn(1, 3, 9), torch.randn(1, 5, 9)
    expected = net(x, c)
    accelerate(net, strict=True)
    seen: list[Tensor] = []
    handle = net.res_blocks[1].register_forward_hook(lambda block, inputs, output: seen.append(output[1]))
    assert torch.equal(net(x, c), expected) and len(seen) == 1
    handle.remove()
    close([net(x, c)], [expected])
    assert len(seen) == 1


def test_on_a_cpu_only_the_networks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    report = accelerate(flows(True, "hooks"), strict=True)
    assert [e.path for e in report.replaced] == [f"flows.{k}.coupling.net.res_blocks" for k in range(2)]
    assert not report.refused and {e.reason for e in report.left} == {ON_A_CPU}


def test_a_few_steps_run_block_by_block() -> None:
    net = randomise(Wavenet(3, 6, 2, 8, 5, NORMS["plain"]))
    x, c = torch.randn(1, 3, 2), torch.randn(1, 5, 2)
    expected = net(x, c)
    accelerate(net, strict=True)
    assert torch.equal(net(x, c), expected)


def test_without_its_conditioning_it_fails_as_before() -> None:
    net = randomise(Wavenet(3, 6, 2, 8, 5, NORMS["plain"])).eval()
    accelerate(net, strict=True)
    with pytest.raises(TypeError):
        net(torch.randn(1, 3, 9))
