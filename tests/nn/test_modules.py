from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastflow.nn import WN, ActNorm, AffineCoupling, Conv1d, InvertibleConv1x1


def test_conv_equals_torch_weight_norm() -> None:
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 5, 3, padding=4, dilation=4))
    ours = Conv1d(3, 5, 3, dilation=4)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 11)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.remove_weight_norm()
    torch.testing.assert_close(ours(x), theirs(x))
    assert list(ours.state_dict()) == ["bias", "weight"]


def test_conv_loads_old_style_weight_norm_not_its_stale_weight() -> None:
    with pytest.warns(FutureWarning):
        theirs = nn.utils.weight_norm(nn.Conv1d(3, 5, 3, padding=1))
    with torch.no_grad():
        theirs.weight_g.mul_(3)
    x = torch.randn(2, 3, 11)
    expected = theirs(x)
    for ours in (Conv1d(3, 5, 3), Conv1d(3, 5, 3, weight_norm=False)):
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_conv_with_channels_beside_each_other_has_the_same_numbers(weight_norm: bool) -> None:
    conv = Conv1d(3, 5, weight_norm=weight_norm)
    for x in (torch.randn(2, 3, 11), torch.randn(2, 6, 11)[:, 3:], torch.randn(2, 3, 0)):
        y = conv.channels_last(x)
        torch.testing.assert_close(y, conv(x))
        assert y.transpose(1, 2).is_contiguous()


def test_conv_reports_what_a_state_dict_lacks() -> None:
    with pytest.raises(RuntimeError, match="weight_v"):
        Conv1d(3, 5, 3).load_state_dict({"weight_g": torch.ones(5, 1, 1), "bias": torch.zeros(5)})


def test_conv_splits_plain_weights_exactly() -> None:
    """A row of zeros stays zero, and norms are not rounded to half."""
    weight = torch.randn(4, 3, 3).half()
    weight[2] = 0
    conv = Conv1d(3, 4, 3)
    conv.load_state_dict({"weight": weight, "bias": torch.zeros(4)})
    torch.testing.assert_close(conv.folded_weight(), weight.float(), rtol=1e-6, atol=0)


def test_removing_weight_norm_keeps_a_frozen_module_frozen() -> None:
    conv = Conv1d(3, 4, 3).requires_grad_(False)
    conv.remove_weight_norm()
    assert not any(p.requires_grad for p in conv.parameters())


def formula(wn: WN, h: torch.Tensor, cond: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The block as VITS and WaveGlow write it, module by module."""
    projected = wn.cond_layer(cond)
    out = torch.zeros_like(h)
    c, count = h.shape[1], len(wn.in_layers)
    for i in range(count):
        u = wn.in_layers[i](h) + projected[:, 2 * c * i : 2 * c * (i + 1)]
        r = wn.res_skip_layers[i](torch.tanh(u[:, :c]) * torch.sigmoid(u[:, c:]))
        if i < count - 1:
            h = (h + r[:, :c]) * mask
            out = out + r[:, c:]
        else:
            out = out + r
    return out * mask


@pytest.mark.parametrize("cond_length", [1, 20])
def test_wn_is_the_published_block(cond_length: int) -> None:
    wn = WN(6, 3, 5, cond_channels=4)
    h, cond = torch.randn(2, 6, 20), torch.randn(2, 4, cond_length)
    mask = (torch.arange(20) < torch.tensor([[20], [13]]))[:, None].float()
    torch.testing.assert_close(wn(h, cond, mask), formula(wn, h, cond, mask))


def test_wn_gradients_are_those_of_the_formula() -> None:
    wn = WN(6, 3, 3, cond_channels=4)
    h, cond, mask = torch.randn(2, 6, 20), torch.randn(2, 4, 20), torch.ones(2, 1, 20)
    grads = [
        torch.autograd.grad(f().square().sum(), list(wn.parameters()))
        for f in (lambda: wn(h, cond, mask), lambda: formula(wn, h, cond, mask))
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_layers": 0}, "`n_layers` must be at least 1; got 0"),
        ({"kernel_size": 2}, "`kernel_size` must be odd; got 2"),
        ({"dilations": [1]}, "`dilations` must have 3 entries, one per layer; got 1"),
    ],
)
def test_wn_sizes_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WN(**({"n_channels": 4, "n_layers": 3, "kernel_size": 3} | arguments))  # type: ignore[arg-type]


def test_wn_conditioning_must_match_the_constructor() -> None:
    with pytest.raises(ValueError, match="`cond` must be given exactly when `cond_channels` is not 0; got None"):
        WN(4, 2, 3, cond_channels=3)(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"`cond` must have 1 or T = 5 steps; got \[1, 3, 4\]"):
        WN(4, 2, 3, cond_channels=3)(torch.zeros(1, 4, 5), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("form", ["exp", "sigmoid", "additive"])
@pytest.mark.parametrize("transform_first", [False, True])
def test_coupling_inverts_and_keeps_one_half(form: str, transform_first: bool) -> None:
    coupling = AffineCoupling(
        nn.Conv1d(3, 3 if form == "additive" else 6, 1), form=form, transform_first=transform_first
    )
    x = torch.randn(2, 6, 9)
    y, log_det = coupling(x)
    back, negative = coupling(y, reverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det, -negative)
    kept = slice(3, 6) if transform_first else slice(0, 3)
    assert torch.equal(y[:, kept], x[:, kept])
    assert not torch.equal(y, x)


def test_coupling_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`x` must be \[B, C, T\] or \[B, C, H, W\] with C even; got \[1, 3, 2\]"):
        AffineCoupling(nn.Identity())(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"`net` must return 4 channels for the form 'exp'; got \[1, 2, 2\]"):
        AffineCoupling(nn.Identity())(torch.zeros(1, 4, 2))


@pytest.mark.parametrize("plu", [False, True])
def test_invertible_conv_starts_as_a_rotation_and_inverts(plu: bool) -> None:
    conv = InvertibleConv1x1(6, plu=plu)
    x = torch.randn(2, 6, 9)
    y, log_det = conv(x)
    torch.testing.assert_close(y.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(log_det, torch.zeros(2), atol=1e-4, rtol=0)
    with torch.no_grad():
        next(conv.parameters()).mul_(1.1)
    y, log_det = conv(x)
    back, negative = conv(y, reverse=True)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_det, -negative)
    torch.testing.assert_close(conv.infer(y), x, rtol=1e-4, atol=1e-5)


def test_inverse_is_computed_wide_and_never_stale() -> None:
    conv = InvertibleConv1x1(4).bfloat16()
    y = torch.randn(1, 4, 5).bfloat16()
    with torch.no_grad():
        first = conv.infer(y)
        expected = torch.linalg.inv(conv.conv.weight[:, :, 0].float()).bfloat16() @ y
        assert torch.equal(first, expected)
        conv.conv.weight.mul_(2)
        torch.testing.assert_close(conv.infer(y), first / 2)


def test_inverse_is_kept_in_the_weights_own_dtype_too() -> None:
    conv = InvertibleConv1x1(4).bfloat16()
    with torch.no_grad():
        wide, half = conv.inverse(torch.float32), conv.inverse(torch.bfloat16)
        assert wide.dtype == torch.float32
        assert torch.equal(wide.bfloat16(), half)
        assert conv.inverse(torch.bfloat16) is half


def test_plu_inverse_follows_its_buffers_and_ignores_autocast() -> None:
    conv = InvertibleConv1x1(6, plu=True)
    y = torch.randn(1, 6, 5)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            conv.infer(y)
        expected = torch.linalg.solve(conv.weight().weight(), y[0])[None]
        torch.testing.assert_close(conv.infer(y), expected, rtol=1e-4, atol=1e-5)
        conv.get_buffer("sign").neg_()
        torch.testing.assert_close(conv.infer(y), copy.deepcopy(conv).infer(y))
        assert not torch.allclose(conv.infer(y), expected)


def test_actnorm_starts_from_its_first_input() -> None:
    norm = ActNorm(3)
    x = 5 + 3 * torch.randn(4, 3, 50)
    y, log_det = norm(x)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(log_det, norm.scale.abs().log().sum().expand(4) * 50)
    back, _ = norm(y, reverse=True)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    before = copy.deepcopy(norm.state_dict())
    norm(torch.randn(4, 3, 50))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items()), "the start happens once"


def test_actnorm_masked_start_ignores_what_is_masked() -> None:
    x = torch.randn(2, 3, 20)
    mask = torch.ones(2, 1, 20)
    mask[1, :, 8:] = 0
    dirty = x + 100 * (1 - mask)
    clean, other = ActNorm(3), ActNorm(3)
    torch.testing.assert_close(clean(x * mask, mask=mask)[0], other(dirty, mask=mask)[0])


def test_actnorm_state_dict_counts_as_the_start() -> None:
    norm, other = ActNorm(3), ActNorm(3)
    norm(torch.randn(2, 3, 10))
    other.load_state_dict(norm.state_dict())
    x = torch.randn(2, 3, 10)
    torch.testing.assert_close(other(x)[0], norm(x)[0])
    with pytest.raises(RuntimeError, match="must see data"):
        ActNorm(3)(x, reverse=True)
    with pytest.raises(ValueError, match="`x` must have at least two steps to initialise from; got 1"):
        ActNorm(3)(torch.zeros(1, 3, 1))


@pytest.mark.parametrize("module", [InvertibleConv1x1, ActNorm])
def test_channels_must_be_positive(module: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="`channels` must be at least 1; got 0"):
        module(0)
