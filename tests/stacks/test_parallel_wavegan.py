from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from fastflow.stacks import accelerate
from fastflow.stacks.gated import GatedBlock
from tests.stacks.checks import close, randomise, replaced_equals_original, run
from tests.stacks.parallel_wavegan_twin import (
    CausalBlock,
    Coqui,
    ESPnet,
    ParallelWaveGANGenerator,
    WaveNetResidualBlock,
)
from tests.stacks.vits_twin import NORMS

BLOCKS = {
    "kan-bayashi": WaveNetResidualBlock,
    "causal": CausalBlock,
    "coqui": Coqui.ResidualBlock,
    "espnet": ESPnet.ResidualBlock,
}


def generator(block: str, norm: str = "hooks", **options: object) -> ParallelWaveGANGenerator:
    torch.manual_seed(0)
    return randomise(ParallelWaveGANGenerator(BLOCKS[block], NORMS[norm], **options))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 1, 24, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)


@pytest.mark.parametrize(
    ("block", "norm"), [*((b, "hooks") for b in BLOCKS), ("kan-bayashi", "parametrizations"), ("espnet", "plain")]
)
def test_generators_are_the_original(block: str, norm: str) -> None:
    model = generator(block, norm)
    z, c = inputs()
    report = replaced_equals_original(model, lambda: model(z, c), [z, c], 1)
    assert report.entries[0].path == "conv_layers" and report.entries[0].op == "wn"


def test_other_sizes_kernels_and_no_bias() -> None:
    model = generator("kan-bayashi", width=6, gate=20, skip=4, kernel=5, bias=False)
    z, c = inputs()
    replaced_equals_original(model, lambda: model(z, c), [z, c], 1)


def test_without_conditioning_as_in_the_discriminator() -> None:
    model = generator("kan-bayashi", aux=-1)
    z, _ = inputs()
    replaced_equals_original(model, lambda: model(z, None), [z], 1)


@pytest.mark.parametrize("block", ["kan-bayashi", "espnet"])
def test_dropout_in_training_is_the_originals(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatedBlock, "_worth_it", lambda self, x: True)  # as on a GPU
    model = generator(block, dropout=0.5)
    z, c = inputs()

    def call() -> torch.Tensor:
        torch.manual_seed(2)
        return model(z, c)

    expected = call()
    accelerate(model, strict=True)
    assert torch.equal(call(), expected)
    close([model.eval()(z, c)], [_reverted(model)(z, c)])


def _reverted(model: nn.Module) -> nn.Module:
    twin = generator("espnet" if hasattr(model.conv_layers[0], "dropout_rate") else "kan-bayashi", dropout=0.5).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("block", ["kan-bayashi", "espnet"])
def test_training_on_a_cpu_is_the_originals(block: str) -> None:
    model = generator(block)
    z, c = inputs()
    expected = run(model, lambda: model(z, c), [z, c])
    accelerate(model, strict=True)
    got = run(model, lambda: model(z, c), [z, c])
    assert all(torch.equal(a, b) for a, b in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True))
    with torch.no_grad():
        assert not torch.equal(model(z, c), got[0][0])  # no step of training: fast


def test_the_list_is_still_the_list() -> None:
    model = generator("kan-bayashi", "plain")
    z, c = inputs()
    expected, blocks, text = model(z, c), list(model.conv_layers), repr(model)
    accelerate(model, strict=True)
    layers = model.conv_layers
    assert isinstance(layers, nn.ModuleList) and len(layers) == 4 and repr(model) == text
    assert (
        all(layers[i] is block for i, block in enumerate(blocks))
        and list(layers[1:3]) == blocks[1:3]
        and layers[-1] is blocks[3]
    )
    assert [block.conv.dilation[0] for block in layers.children()] == [1, 2, 1, 2]
    close([copy.deepcopy(model)(z, c)], [expected])
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    opened = torch.load(buffer, weights_only=False)
    assert type(opened.conv_layers) is nn.ModuleList and torch.equal(opened(z, c), expected)
    model.double()
    assert model(z.double(), c.double()).dtype == torch.float64
    compiled = torch.compile(model.float(), backend="eager", fullgraph=True)
    close([compiled(z, c)], [expected])


def test_espnets_masked_blocks_run_one_by_one() -> None:
    model = generator("espnet")
    x, c, mask = torch.randn(2, 8, 9), torch.randn(2, 5, 9), (torch.arange(9) < 5).float().expand(2, 1, 9)

    def skips() -> torch.Tensor:
        h, total = x, 0
        for f in model.conv_layers:
            h, s = f(h, x_mask=mask, c=c)
            total = total + s
        return total

    expected = skips()
    accelerate(model, strict=True)
    assert torch.equal(skips(), expected)


def test_another_factor_is_noticed() -> None:
    class Halved(WaveNetResidualBlock):
        residual_scale = math.sqrt(0.4)

    report = accelerate(randomise(ParallelWaveGANGenerator(Halved, NORMS["plain"])))
    assert "computes something else" in report.left[0].reason


def test_blocks_that_differ_are_left() -> None:
    model = generator("kan-bayashi")
    model.conv_layers[2].conv1x1_skip = nn.Conv1d(8, 7, 1)
    assert "differ" in accelerate(model).left[0].reason
