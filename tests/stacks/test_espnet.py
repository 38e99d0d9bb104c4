from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from fastflow.stacks import accelerate, espnet
from tests.stacks.checks import close, inputs_of, masked, randomise, replaced_equals_original
from tests.stacks.espnet_twin import ResidualAffineCouplingLayer, WaveNet
from tests.stacks.vits_twin import NORMS


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"glo": 3},
        {"aux": 4, "glo": 3, "base": 2, "scale": True, "skip_scale": False},
        {"first": 1, "aux": 4, "base": 2, "scale": True},
    ],
    ids=["VITS", "VITS, speakers", "both conditionings", "first and last convolution"],
)
def test_wavenet_is_the_original(norm: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = randomise(WaveNet(8, 3, norm=norm, **options))
    first, aux, glo = (options.get(name, 0) for name in ("first", "aux", "glo"))
    x, c, g = inputs_of((2, first or 8, 21), (2, aux, 21) if aux else None, (2, glo, 1) if glo else None)
    mask = None if first else masked(21, 13)
    replaced_equals_original(module, lambda: module(x if mask is None else x * mask, mask, c=c, g=g), [x, c, g], 1)


@pytest.mark.parametrize("options", [{}, {"glo": 3}, {"first": 1}], ids=["VITS", "VITS, speakers", "first convolution"])
def test_input_that_is_not_zero_outside_the_mask(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = randomise(WaveNet(8, 3, **options))
    x, g = inputs_of((2, options.get("first", 8), 21), (2, 3, 1) if "glo" in options else None)
    replaced_equals_original(module, lambda: module(x, masked(21, 13), g=g), [x, g], 1)


def test_masked_input_is_ours() -> None:
    module, x, mask = randomise(WaveNet(8, 3)).eval(), torch.randn(2, 8, 21), masked(21, 13)
    accelerate(module, strict=True)
    with torch.no_grad(), mock.patch.object(espnet, "as_mask", wraps=espnet.as_mask) as ours:
        module(x * mask, mask)
        assert ours.call_count == 1
        module(x, mask)
        assert ours.call_count == 1


def test_compiled_with_a_mask_there_are_no_graph_breaks() -> None:
    torch.compiler.reset()
    module, x, mask = randomise(WaveNet(8, 2, norm="plain")).eval(), torch.randn(2, 8, 21), masked(21, 13)
    accelerate(module, strict=True)
    with torch.no_grad():
        close([torch.compile(module, fullgraph=True, backend="eager")(x, mask)], [module(x, mask)])


def test_one_of_two_conditionings_runs_the_original() -> None:
    torch.manual_seed(0)
    module = randomise(WaveNet(8, 2, aux=4, glo=3)).eval()
    x, c = torch.randn(2, 8, 21), torch.randn(2, 4, 21)
    with torch.no_grad():
        expected = module(x, c=c)
        accelerate(module, strict=True)
        assert torch.equal(module(x, c=c), expected)


def test_dropout_in_training_is_the_originals() -> None:
    torch.manual_seed(0)
    module, x = WaveNet(8, 2, p=0.5), torch.randn(2, 8, 21)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = module(x)
        accelerate(module, strict=True)
        torch.manual_seed(1)
        assert torch.equal(module(x), expected)


def test_dropout_of_layers_in_training_is_the_originals() -> None:
    torch.manual_seed(0)
    module, x = WaveNet(8, 2, p=0.5).eval(), torch.randn(2, 8, 21)
    module.conv_layers.train()
    with torch.no_grad():
        torch.manual_seed(1)
        expected = module(x)
        accelerate(module, strict=True)
        torch.manual_seed(1)
        assert torch.equal(module(x), expected)


@pytest.mark.parametrize("inverse", [False, True])
def test_coupling_is_the_original(inverse: bool) -> None:
    torch.manual_seed(0)
    module = randomise(ResidualAffineCouplingLayer(6, 8, 2, 3, True))
    x, g = inputs_of((2, 6, 21), (2, 3, 1))
    replaced_equals_original(module, lambda: module(x, masked(21, 13), g=g, inverse=inverse), [x, g], 2)


@pytest.mark.parametrize("mask", [None, masked(21), masked(21).bool()], ids=["none", "float", "bool"])
def test_autocast_gives_the_originals_dtype(mask: torch.Tensor | None) -> None:
    module, x = randomise(WaveNet(8, 2)).eval(), torch.randn(1, 8, 21)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(x, mask)
        accelerate(module, strict=True)
        assert module(x, mask).dtype == expected.dtype


def test_a_second_call_leaves_what_is_inside() -> None:
    """Its layers are a known list themselves, where they are scaled."""
    module, x = randomise(WaveNet(8, 3, scale=True, norm="plain")).eval(), torch.randn(2, 8, 21)
    with torch.no_grad():
        expected = module(x)
        accelerate(module, strict=True)
        assert [(e.path, e.reason) for e in accelerate(module)] == [("", "replaced by an earlier call")]
        close([module(x)], [expected])


def test_with_its_layers_replaced_before_it_is_left() -> None:
    module, x = randomise(WaveNet(8, 3, scale=True, norm="plain")).eval(), torch.randn(2, 8, 21)
    with torch.no_grad():
        expected = module(x)
        accelerate(module.conv_layers, strict=True)
        whole, layers = accelerate(module)
        assert whole.reason == "`conv_layers` in it was replaced by an earlier call" and layers.path == "conv_layers"
        close([module(x)], [expected])
