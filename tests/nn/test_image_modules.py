"""The modules of image flows, and the others on images."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    CheckerboardCoupling,
    FlowSequential,
    InvertibleConv1x1,
    Squeeze2d,
    TanhScale,
    ZeroConv2d,
    coupling_net,
)

FORMS = ("exp", "sigmoid", "additive")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Steps(nn.Module):
    """A network of images, on images that were made steps."""

    def __init__(self, net: nn.Module, height: int) -> None:
        super().__init__()
        self.net = net
        self.height = height

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.unflatten(2, (self.height, -1)))
        return out.flatten(2)


def random_net(in_channels: int, out_channels: int) -> nn.Sequential:
    """A coupling network that does not start at zero."""
    net = coupling_net(in_channels, 8, out_channels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def layouts(x: Tensor) -> list[Tensor]:
    """The same image as one block, with channels beside each other, as every other channel, and transposed."""
    wide = torch.full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), torch.nan)
    wide[:, ::2] = x
    return [x, x.contiguous(memory_format=torch.channels_last), wide[:, ::2], x.transpose(2, 3).contiguous().mT]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["actnorm", "invconv", "plu", "exp", "sigmoid", "additive"])
def test_images_are_steps_to_every_flow(name: str, reverse: bool, masked: bool) -> None:
    x = torch.randn(2, 4, 3, 5)
    mask = (torch.rand(2, 1, 3, 5) > 0.3).float() if masked else None
    steps_mask = None if mask is None else mask.flatten(2)
    if name in FORMS:
        net = random_net(2, 2 if name == "additive" else 4)
        module: nn.Module = AffineCoupling(net, form=name)
        of_steps: nn.Module = AffineCoupling(Steps(net, 3), form=name)
    else:
        module = of_steps = ActNorm(4) if name == "actnorm" else InvertibleConv1x1(4, plu=name == "plu")
        module(x, mask=mask)
    expected, expected_log_det = of_steps(x.flatten(2), mask=steps_mask, reverse=reverse)
    for image in layouts(x):
        y, log_det = module(image, mask=mask, reverse=reverse)
        torch.testing.assert_close(y, expected.view(x.shape))
        torch.testing.assert_close(log_det, expected_log_det)


def test_actnorm_starts_from_images() -> None:
    norm = ActNorm(3)
    y, _ = norm(5 + 3 * torch.randn(4, 3, 6, 7))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.flatten(2).std((0, 2)), torch.ones(3), atol=1e-4, rtol=0)


def test_squeeze_takes_blocks_in_the_order_of_rows() -> None:
    x = torch.arange(2 * 2 * 4 * 6.0).view(2, 2, 4, 6)
    y, log_det = Squeeze2d()(x)
    assert y.shape == (2, 8, 2, 3)
    for channel in range(2):
        for i in range(2):
            for j in range(2):
                assert torch.equal(y[:, 4 * channel + 2 * i + j], x[:, channel, i::2, j::2])
    assert torch.equal(log_det, torch.zeros(2))
    back, log_det = Squeeze2d()(y.double(), reverse=True)
    assert torch.equal(back, x.double())
    assert log_det.dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "reverse", "message"),
    [
        ((1, 2, 3, 4), False, r"`x` must be \[B, C, H, W\] with H and W even; got \[1, 2, 3, 4\]"),
        ((1, 2, 4, 3), False, r"`x` must be \[B, C, H, W\] with H and W even; got \[1, 2, 4, 3\]"),
        ((1, 2, 4), False, r"`x` must be \[B, C, H, W\] with H and W even; got \[1, 2, 4\]"),
        ((1, 6, 4, 4), True, r"`x` must be \[B, C, H, W\] with C a multiple of 4; got \[1, 6, 4, 4\]"),
    ],
)
def test_squeeze_refuses_what_it_cannot_halve(shape: tuple[int, ...], reverse: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Squeeze2d()(torch.zeros(shape), reverse=reverse)


def checkerboard(coupling: CheckerboardCoupling, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 9 of the RealNVP paper, pixel by pixel."""
    b = torch.ones_like(x)  # one where a pixel passes
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            if (i + j) % 2 == (0 if coupling.transform_first else 1):
                b[:, :, i, j] = 0
    out = coupling.net(b * x)
    if coupling.form == "additive":
        return b * x + (1 - b) * (x + out), x.new_zeros(x.shape[0])
    shift, s = out.chunk(2, 1)
    if coupling.form == "sigmoid":
        scale = torch.sigmoid(s + 2)
        return b * x + (1 - b) * (x + shift) * scale, ((1 - b) * scale.log()).sum((1, 2, 3))
    return b * x + (1 - b) * (x * s.exp() + shift), ((1 - b) * s).sum((1, 2, 3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transform_first", [False, True])
def test_checkerboard_is_the_formula_and_inverts(form: str, transform_first: bool) -> None:
    net = random_net(3, 3 if form == "additive" else 6)
    coupling = CheckerboardCoupling(net, form=form, transform_first=transform_first)
    for size in ((3, 5), (1, 1), (4, 4)):
        x = torch.randn(2, 3, *size, requires_grad=True)
        inputs = [x, *net.parameters()]
        found, expected = coupling(x), checkerboard(coupling, x)
        torch.testing.assert_close(found, expected)
        weights = torch.randn_like(x), torch.randn(2)
        grads = [
            torch.autograd.grad((y * weights[0]).sum() + (log_det * weights[1]).sum(), inputs, materialize_grads=True)
            for y, log_det in (found, expected)
        ]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
        y, log_det = coupling(x)
        back, negative = coupling(y, reverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_det, -negative)


def test_checkerboard_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`x` must be \[B, C, H, W\]; got \[1, 3, 2\]"):
        CheckerboardCoupling(nn.Identity())(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"`net` must return 6 channels for the form 'exp'; got \[1, 3, 2, 2\]"):
        CheckerboardCoupling(nn.Identity())(torch.zeros(1, 3, 2, 2))


def test_coupling_net_is_the_published_one_and_starts_at_zero() -> None:
    net = coupling_net(3, 16, 5)
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(net(x), torch.zeros(2, 5, 4, 6))
    net = random_net(3, 5)
    last = net[4]
    assert isinstance(last, ZeroConv2d)
    h = nn.functional.relu(nn.functional.conv2d(x, net[0].weight, net[0].bias, padding=1))
    h = nn.functional.relu(nn.functional.conv2d(h, net[2].weight, net[2].bias))
    h = nn.functional.conv2d(h, last.conv.weight, last.conv.bias, padding=1)
    torch.testing.assert_close(net(x), h * torch.exp(3 * last.scale))


def test_tanh_bounds_the_log_scale_by_its_gain() -> None:
    bounded = TanhScale(nn.Identity(), 2)
    x = 100 * torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        bounded.gain.copy_(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
    out = bounded(x)
    assert torch.equal(out[:, :2], x[:, :2])
    torch.testing.assert_close(out[:, 2], 0.5 * torch.tanh(x[:, 2]))
    torch.testing.assert_close(out[:, 3], 2 * torch.tanh(x[:, 3]))


def test_flows_run_in_order_and_back() -> None:
    flows = FlowSequential(OrderedDict(squeeze=Squeeze2d(), norm=ActNorm(4), conv=InvertibleConv1x1(4)))
    x = torch.randn(3, 1, 4, 6)
    y, log_det = flows(x)
    h, _ = flows.squeeze(x)
    h, first = flows.norm(h)
    h, second = flows.conv(h)
    assert torch.equal(y, h)
    torch.testing.assert_close(log_det, first + second)
    back, negative = flows(y, reverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(negative, -log_det)
    assert list(flows.state_dict()) == ["norm.loc", "norm.scale", "conv.conv.weight"]
