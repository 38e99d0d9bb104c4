from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastflow.stacks import Report, accelerate
from fastflow.stacks import waveglow as stack
from fastflow.stacks.couplings import ON_A_CPU
from tests.stacks.checks import close, randomise, replaced_equals_original
from tests.stacks.vits_twin import NORMS
from tests.stacks.waveglow_twin import WN, Invertible1x1Conv, WaveGlow

FORMS = ("glow", "glow_old", "entry", "nemo")


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace also what would be left because a CPU gains nothing."""
    for block in stack.BLOCKS:
        monkeypatch.setattr(block, "no_gain", lambda module: None)


def model(form: str, norm: str = "hooks") -> WaveGlow:
    torch.manual_seed(0)
    twin = WaveGlow(form, NORMS[norm])
    randomise(twin)
    with torch.no_grad():
        for part in twin.convinv:
            part.conv.weight.mul_(1.1)
    return twin


@pytest.mark.parametrize(
    ("form", "norm"), [*((form, "hooks") for form in FORMS), ("glow", "parametrizations"), ("entry", "plain")]
)
def test_all_forms_are_the_original(form: str, norm: str) -> None:
    twin = model(form, norm)
    mel, audio = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 64, requires_grad=True)
    report = replaced_equals_original(twin, lambda: twin((mel, audio)), [mel, audio], 8)
    assert {e.op for e in report} == {"wn", "invconv1x1"}
    assert not report.left


@pytest.mark.parametrize("form", FORMS)
def test_synthesis_is_the_original(form: str) -> None:
    twin, mel = model(form).eval(), torch.randn(1, 5, 6)

    def audio() -> Tensor:
        torch.manual_seed(3)
        with torch.no_grad():
            return twin.infer(mel, 0.6)

    expected = audio()
    report = accelerate(twin, strict=True)
    close([audio()], [expected], rtol=1e-4, atol=1e-4)
    report.revert()
    assert torch.equal(audio(), expected)


def test_the_inverse_follows_the_weight() -> None:
    conv = Invertible1x1Conv(4)
    z = torch.randn(1, 4, 9)
    accelerate(conv)
    with torch.no_grad():
        conv(z, reverse=True)
        conv.conv.weight.mul_(2)
        torch.testing.assert_close(conv(conv(z)[0], reverse=True), z, rtol=1e-3, atol=1e-4)
    assert not hasattr(conv, "W_inverse")


def test_a_negative_determinant_has_a_logarithm() -> None:
    conv = Invertible1x1Conv(2)
    with torch.no_grad():
        conv.conv.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 0.0]])[:, :, None])
    z = torch.randn(1, 2, 3)
    expected = conv(z)
    accelerate(conv, strict=True)
    close(list(conv(z)), list(expected))


def test_what_is_no_gated_stack_is_named_and_left() -> None:
    def left(net: WN) -> Report:
        report = accelerate(net)
        assert not report.replaced
        return report

    depthwise = WN(4, 6, 2, 8, NORMS["plain"], True)
    depthwise.in_layers[1] = torch.nn.Conv1d(8, 16, 3, padding=1, groups=8)
    assert "8 groups" in left(depthwise).left[0].reason

    class Ungated(WN):
        def run(self, audio: Tensor, spect: Tensor) -> Tensor:
            return self.end(torch.relu(super().run(audio, spect)[:, :1]).expand(-1, 8, -1))

    assert "computes something else" in left(randomise(Ungated(4, 6, 2, 8, NORMS["plain"], True))).left[0].reason


def test_on_a_cpu_the_1x1_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    report = accelerate(model("glow"), strict=True)
    assert [e.path for e in report.replaced] == [f"WN.{k}" for k in range(4)]
    assert not report.refused and {e.reason for e in report.left} == {ON_A_CPU}


@pytest.mark.parametrize("form", FORMS)
def test_training_on_a_cpu_is_the_originals(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    twin, inputs = model(form), (torch.randn(2, 5, 4), torch.randn(2, 64))
    expected = twin(inputs)[0]
    accelerate(twin, strict=True)
    assert torch.equal(twin(inputs)[0], expected)
