"""What is no gated stack is named in the report and left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastflow.stacks import AccelerateError, accelerate
from tests.models.squeezewave_twin import SqueezeWave


class RadttsWN(nn.Module):
    """With the parts of the published one."""

    def __init__(self) -> None:
        super().__init__()
        self.n_layers, self.n_channels, self.affine_activation = 2, 4, "softplus"
        self.start, self.end, self.softplus = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Softplus()
        self.in_layers = nn.ModuleList(nn.Conv1d(4, 4, 5, padding=2) for _ in range(2))
        self.res_skip_layers = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))

    def forward(self, forward_input: tuple[Tensor, Tensor], seq_lens: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class WaveFlowBlock(nn.Module):
    """With the parts of the published one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.condition_proj, self.out_proj = nn.Conv2d(4, 8, 3), nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1)


class TransformerCouplingBlock(nn.Module):
    """With the name and the list of the published one."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = nn.ModuleList([nn.Conv1d(2, 2, 1)])


@pytest.mark.parametrize(
    ("block", "reason"),
    [(TransformerCouplingBlock, "transformers"), (RadttsWN, "no gate"), (WaveFlowBlock, "two dimensions")],
)
def test_other_layers_are_named(block: type[nn.Module], reason: str) -> None:
    module = nn.Sequential(block())
    report = accelerate(module)
    assert not report.replaced and [e.path for e in report.refused] == ["0"]
    assert reason in report.refused[0].reason and type(module[0]) is block
    with pytest.raises(AccelerateError, match=reason):
        accelerate(module, strict=True)


def test_squeezewave_is_named_and_runs_as_before() -> None:
    torch.manual_seed(0)
    model = SqueezeWave(5, 2, 128, 2, 16, 2, 8).eval()
    mel, audio = torch.randn(1, 5, 2), torch.randn(1, 512)
    expected = model(mel, audio)[0]
    report = accelerate(model)
    assert [e.path for e in report.refused] == ["WN.0", "WN.1"] and not report.replaced
    assert "depthwise" in report.refused[0].reason
    assert torch.equal(model(mel, audio)[0], expected)
