"""The three ways of the backward of Glow and RealNVP; `test_backprop.py` has what all models share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastflow import use_backend
from fastflow.models import Glow, ImageFlow, RealNVP
from fastflow.nn import ActNorm, AffineCoupling, FlowSequential, InvertibleConv1x1, Squeeze2d, ZeroConv2d, backprop
from fastflow.nn.backprop import BACKPROPS, ReconstructionError
from tests.models.test_backprop import BACKENDS, LESS, Problem, check, kept, off
from tests.models.test_image_flows import MODELS, made


class Images(Problem):
    """A model, and its loss on a batch of images."""

    def __init__(self, model: ImageFlow, *shape: int) -> None:
        self.model, self.x = model, torch.randn(shape[0], model.in_channels, *shape[1:])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def loss(self) -> Tensor:
        loss: Tensor = self.model.bits_of_values(self.x.to(next(self.model.parameters()).dtype), 8).mean()
        return loss


def problem_of(name: str, *shape: int) -> Images:
    torch.manual_seed(0)
    return Images(made(name), *(shape or (3, 8, 16)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_autograd_in_float64(name: str, backend: str) -> None:
    problem = problem_of(name)
    wide = copy.deepcopy(problem)
    wide.model.double()
    with use_backend("reference"):
        expected = wide.gradients("autograd")
        assert expected.keys() == dict(wide.model.named_parameters()).keys()
        for way in LESS:  # to far more than float32 holds, so that it is the same formula
            for key, g in wide.gradients(way).items():
                torch.testing.assert_close(g, expected[key], rtol=1e-7, atol=1e-9)
    with use_backend(backend):
        for way in BACKPROPS:
            check(problem.gradients(way), expected)


@pytest.mark.parametrize("name", ["glow", "realnvp", "nice"])
def test_gradients_under_autocast(name: str) -> None:
    problem = problem_of(name)

    def narrow() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem.loss()

    expected, plain = problem.gradients("autograd"), problem.gradients("autograd", narrow)
    for way in LESS:
        got = problem.gradients(way, narrow)
        assert got.keys() == expected.keys()
        assert all(g.dtype == torch.float32 for g in got.values())
        assert off(got, expected) <= 2 * off(plain, expected), way


@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize("part", ["x", "z 0", "z 1", "frozen"])
def test_gradients_of_and_by_parts(part: str, way: str) -> None:
    """Of the images; of what leaves early, which later steps have no share in; of some of the parameters."""
    problem = problem_of("glow")
    for name, p in problem.model.named_parameters():
        p.requires_grad_(part != "frozen" or name.startswith(("levels.0.1.coupling", "levels.1.2.actnorm")))
    problem.x.requires_grad_(part == "x")

    def loss() -> Tensor:
        zs, log_likelihood = problem.model(problem.x)
        total: Tensor = zs[int(part[2:])].square().sum() if part.startswith("z") else log_likelihood.sum()
        return total

    found = []
    for each in (way, "autograd"):
        problem.x.grad = None
        found.append(problem.gradients(each, loss))
        if part == "x":
            assert problem.x.grad is not None
            found[-1]["x"] = problem.x.grad
    check(*found)


def test_memory_by_the_number_of_steps() -> None:
    def sizes_of(steps: int) -> dict[str, int]:
        torch.manual_seed(0)
        problem = Images(Glow(1, 2, steps, 8), 2, 64, 64)
        with torch.no_grad():
            problem.loss()  # starts every actnorm
        return {way: kept(problem, way) for way in BACKPROPS}

    few, more = sizes_of(2), sizes_of(6)
    growth = {way: (more[way] - few[way]) / 4 for way in BACKPROPS}
    x = 2 * 64 * 64 * 4 * 1.5  # bytes of the input of a step of each level
    assert growth["autograd"] > 6 * x
    assert x <= growth["recompute"] < 1.1 * x
    assert growth["invert"] < 0.1 * x  # samples
    assert few["invert"] < few["recompute"] < few["autograd"]


@pytest.mark.parametrize(
    ("smallest", "error", "message"),
    [
        (1e-5, ReconstructionError, r"the input of flow 1 of level 1 .* error of [0-9.e-]+ .*`backprop` 'recompute'"),
        (0.0, ValueError, "`the 1x1 weight of flow 1 of level 1` must be invertible"),
    ],
)
def test_what_drifts_is_refused_and_the_flow_is_named(smallest: float, error: type[Exception], message: str) -> None:
    torch.manual_seed(0)
    problem = Images(Glow(1, 2, 2, 8, plu=False), 2, 16, 16)
    problem.gradients("autograd")
    weight = problem.model.get_parameter("levels.1.1.invconv.conv.weight")
    with torch.no_grad():
        u, s, v = torch.linalg.svd(weight[:, :, 0])
        s[-1] = smallest
        weight.copy_((u * s @ v)[:, :, None])
    if smallest:
        check(problem.gradients("recompute"), problem.gradients("autograd"))
    with pytest.raises(error, match=message):
        problem.gradients("invert")


@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize("make", [lambda: Glow(1, 2, 2, 8), lambda: RealNVP(1, 2, 8)], ids=["glow", "realnvp"])
def test_actnorm_takes_its_start_in_the_first_forward(make: Callable[[], ImageFlow], way: str) -> None:
    torch.manual_seed(0)
    problem = Images(make(), 4, 8, 8)
    plain = copy.deepcopy(problem)
    check(problem.gradients(way), plain.gradients("autograd"))
    assert all(module.initialized for module in problem.model.modules() if isinstance(module, ActNorm))
    for got, expected in zip(problem.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(got, expected)


def own_flow() -> ImageFlow:
    """Levels of modules in another order: none of them with a network, or one that counts and draws."""
    net = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.5), ZeroConv2d(8, 8))
    levels = [
        FlowSequential(Squeeze2d(), ActNorm(8, initialized=True)),
        FlowSequential(Squeeze2d(), InvertibleConv1x1(16)),
        FlowSequential(InvertibleConv1x1(8), AffineCoupling(net), FlowSequential(ActNorm(8, initialized=True))),
    ]
    model = ImageFlow(2, levels, {})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("way", LESS)
def test_any_flows_and_what_a_network_counts_and_draws(way: str) -> None:
    torch.manual_seed(0)
    problem = Images(own_flow(), 3, 8, 8)
    plain = copy.deepcopy(problem)
    found: list[Any] = []
    for each, other in ((way, problem), ("autograd", plain)):
        torch.manual_seed(1)
        found.append(other.gradients(each))
    check(*found)
    counted = dict(problem.model.named_buffers())
    assert int(counted["levels.2.1.net.1.num_batches_tracked"]) == 1
    for name, expected in plain.model.named_buffers():
        assert torch.equal(counted[name], expected), name


@pytest.mark.parametrize("kind", [Glow, RealNVP])
def test_the_switch(kind: type[ImageFlow], tmp_path: Path) -> None:
    small: Any = {"in_channels": 1, "n_levels": 1, "hidden_channels": 4}
    model = kind(**small, backprop="invert")  # type: ignore[call-arg]
    assert model.backprop == "invert" and copy.deepcopy(model).backprop == "invert"
    with pytest.raises(ValueError, match="`backprop` must be one of autograd, recompute, invert; got 'nonsense'"):
        model.backprop = "nonsense"
    with pytest.raises(ValueError, match="`backprop` must be one of autograd, recompute, invert; got 'less'"):
        kind(**small, backprop="less")  # type: ignore[call-arg]
    model(torch.randn(2, 1, 4, 4))
    model.save(tmp_path / "model.safetensors")
    loaded = kind.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config and loaded.backprop == "autograd"


@pytest.mark.parametrize("shape", [(64, 4, 4), (64, 7, 7), (16, 6, 6), (32, 8, 8), (1, 32, 32)], ids=str)
def test_samples_are_of_many_images_and_pixels(shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    numbers = torch.arange(2.0 * count * height * width).view(count, 2, height, width)
    found = backprop._sample(numbers)[:-1].long()
    assert len(found) == 2 * 32
    pixels = found % (height * width)
    colours = (pixels // width + pixels % width) % 2
    assert len((found // (2 * height * width)).unique()) >= min(count, 20)
    assert len(pixels.unique()) >= 10 and 0.3 < colours.double().mean() < 0.7
