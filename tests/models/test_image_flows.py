"""Glow and RealNVP: formulas, inverses, likelihood, samples, files."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastflow.models import Glow, ImageFlow, RealNVP, dequantize, quantize
from fastflow.nn import ActNorm
from fastflow.nn.coupling_net import ZeroConv2d

MODELS: dict[str, Callable[[], ImageFlow]] = {
    "glow": lambda: Glow(1, 2, 2, 8),
    "glow-exp-plain": lambda: Glow(2, 1, 2, 8, form="exp", plu=False),
    "glow-additive-fixed": lambda: Glow(1, 2, 2, 8, form="additive", learned_prior=False),
    "glow-three-levels": lambda: Glow(3, 3, 1, 8),
    "realnvp": lambda: RealNVP(1, 2, 8),
    "realnvp-one-level": lambda: RealNVP(3, 1, 8),
    "nice": lambda: RealNVP(2, 2, 8, additive=True),
}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made(name: str, dtype: torch.dtype = torch.float32) -> ImageFlow:
    """A model whose parameters are all off their start, and which has seen data."""
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        model(torch.randn(4, model.in_channels, 8, 8, dtype=dtype))
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def log_normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)


@pytest.mark.parametrize("name", MODELS)
def test_inverse_gives_the_images_back(name: str) -> None:
    model = made(name)
    x = 0.5 * torch.randn(3, model.in_channels, 16, 8)
    zs, log_likelihood = model(x)
    assert [tuple(z.shape[1:]) for z in zs] == model.z_shapes(16, 8)
    assert log_likelihood.shape == (3,)
    torch.testing.assert_close(model.inverse(zs), x, rtol=0, atol=1e-5)
    again, _ = model(model.inverse([torch.randn_like(z) for z in zs]))
    assert all(torch.isfinite(z).all() for z in again)


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_is_the_density_by_autograds_jacobian(name: str) -> None:
    model = made(name, torch.float64)
    size = 8 if name == "glow-three-levels" else 4
    x = torch.randn(2, model.in_channels, size, size, dtype=torch.float64)
    zs, log_likelihood = model(x)

    def noise(image: Tensor) -> Tensor:
        return torch.cat([z.flatten() for z in model(image[None])[0]])

    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(noise, x[i]).flatten(1)
        assert jacobian.shape[0] == jacobian.shape[1] == x[i].numel()
        expected = torch.linalg.slogdet(jacobian).logabsdet + sum(log_normal(z)[i] for z in zs)
        torch.testing.assert_close(log_likelihood[i], expected)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_float64_to_its_precision(name: str) -> None:
    model = made(name)
    x = torch.randn(3, model.in_channels, 8, 8)
    zs, log_likelihood = model(x)
    wide_zs, wide = copy.deepcopy(model).double()(x.double())
    assert log_likelihood.dtype == torch.float32
    assert wide.dtype == torch.float64
    torch.testing.assert_close(log_likelihood, wide.float(), rtol=1e-5, atol=1e-3)
    for z, expected in zip(zs, wide_zs, strict=True):
        torch.testing.assert_close(z, expected.float(), rtol=1e-4, atol=1e-4)


def plain(model: Glow, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Glow as it is published, in PyTorch's own functions: what leaves, and the log-likelihood with its prior."""

    def zero_conv(conv: ZeroConv2d, h: Tensor) -> Tensor:
        return F.conv2d(h, conv.conv.weight, conv.conv.bias, padding=1) * torch.exp(3 * conv.scale)

    def log_density(z: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
        terms = -0.5 * math.log(2 * math.pi) - log_sd - 0.5 * (z - mean) ** 2 / torch.exp(2 * log_sd)
        return terms.flatten(1).sum(1)

    leaving: list[Tensor] = []
    total = x.new_zeros(x.shape[0])
    for i, level in enumerate(model.levels):
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        c, pixels = 4 * c, h * w // 4
        *steps, prior = list(level)[1:]
        for step in steps:
            norm, coupling = step.actnorm, step.coupling
            x = norm.scale.view(1, c, 1, 1) * (x + norm.loc.view(1, c, 1, 1))
            total = total + pixels * norm.scale.abs().log().sum()
            factors = step.invconv.weight()
            lower, upper = factors.lower.tril(-1) + torch.eye(c), factors.upper.triu(1)
            weight = factors.permutation @ lower @ (upper + torch.diag(factors.sign * factors.log_s.exp()))
            x = F.conv2d(x, weight[:, :, None, None])
            total = total + pixels * factors.log_s.sum()
            kept, moved = x.chunk(2, 1)
            first, _, second, _, last = coupling.net
            hidden = F.relu(F.conv2d(kept, first.weight, first.bias, padding=1))
            shift, u = zero_conv(last, F.relu(F.conv2d(hidden, second.weight, second.bias))).chunk(2, 1)
            scale = torch.sigmoid(u + 2)
            x = torch.cat((kept, (moved + shift) * scale), 1)
            total = total + scale.log().flatten(1).sum(1)
        if i + 1 < len(model.levels):
            x, z = x.chunk(2, 1)
            mean, log_sd = zero_conv(prior.coupling.net, x).chunk(2, 1)
        else:
            z, mean = x, -prior.loc.view(1, c, 1, 1).expand_as(x)
            log_sd = -prior.scale.abs().log().view(1, c, 1, 1).expand_as(x)
        total = total + log_density(z, mean, log_sd)
        leaving.append((z - mean) / log_sd.exp())
    return leaving, total


def test_glow_is_the_published_formulas_and_so_are_its_gradients() -> None:
    model = made("glow")
    assert isinstance(model, Glow)
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    inputs = [x, *model.parameters()]
    (zs, log_likelihood), (expected_zs, expected) = model(x), plain(model, x)
    torch.testing.assert_close(zs, expected_zs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_likelihood, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(3)
    found, theirs = (torch.autograd.grad((weights * value).sum(), inputs) for value in (log_likelihood, expected))
    for gradient, reference in zip(found, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns_and_the_inverse_has_gradients(name: str) -> None:
    model = made(name)
    model(torch.randn(2, model.in_channels, 8, 8))[1].sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    zs = [torch.randn(1, *shape, requires_grad=True) for shape in model.z_shapes(8, 8)]
    gradients = torch.autograd.grad(model.inverse(zs).square().sum(), zs)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_first_batch_starts_every_actnorm() -> None:
    model = Glow(1, 2, 3, 8)
    norms = [module for module in model.modules() if isinstance(module, ActNorm)]
    assert len(norms) == 7
    outputs: list[Tensor] = []
    for norm in norms:
        norm.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    with pytest.raises(RuntimeError, match="must see data"):
        model.sample(1, 8, 8)
    model(3 + 2 * torch.randn(8, 1, 8, 8))
    assert len(outputs) == 7
    for output in outputs:
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(output.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.flatten(2).std((0, 2)), torch.ones(output.shape[1]), atol=1e-3, rtol=0)


def test_samples_are_the_inverse_of_scaled_noise() -> None:
    model = made("glow")
    x = model.sample(3, 8, 12, 0.7, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    zs = [0.7 * torch.randn(3, *shape, generator=generator) for shape in model.z_shapes(8, 12)]
    torch.testing.assert_close(x, model.inverse(zs))
    assert x.shape == (3, 1, 8, 12)
    assert not x.requires_grad
    coldest = model.sample(3, 8, 8, 0.0)
    assert torch.equal(coldest[0], coldest[1])


def test_bits_per_dim_counts_from_the_likelihood_of_dequantised_images() -> None:
    model = made("realnvp")
    images = torch.randint(0, 16, (5, 1, 4, 4), dtype=torch.uint8)
    bits = model.bits_per_dim(images, 4, generator=torch.Generator().manual_seed(1))
    x = dequantize(images, 4, generator=torch.Generator().manual_seed(1))
    assert -0.5 <= float(x.min()) <= float(x.max()) <= 0.5
    assert torch.equal(quantize(x, 4), images)
    # a density p(x) of the cube of volume 16**-D in which an image lies is a probability of p(x) * 16**-D
    expected = -(model(x)[1] - 16 * math.log(16)) / math.log(2) / 16
    torch.testing.assert_close(bits, expected)


def test_bits_per_dim_of_noise_is_at_least_what_noise_costs() -> None:
    """No model can code uniform noise in fewer bits than it has: the check of every sign and constant."""
    model = Glow(1, 2, 2, 16)
    images = torch.randint(0, 8, (512, 1, 4, 4))
    first = model.bits_per_dim(images, 3).mean()
    # a normal distribution of the same variance costs 0.254 bits per value more than the uniform one
    assert first.item() == pytest.approx(3.254, abs=0.02)


def test_quantize_ends_at_the_range() -> None:
    x = torch.tensor([-7.0, -0.5, -0.26, -0.25, 0.49, 0.5, 9.0])
    assert quantize(x, 2).tolist() == [0, 0, 0, 1, 3, 3, 3]


def test_training_makes_bits_fall() -> None:
    model = Glow(1, 2, 2, 16)
    images = torch.arange(8)[:, None] + torch.arange(8)  # a gradient, with a bright block anywhere on it
    images = images.repeat(64, 1, 1, 1)
    for i in range(64):
        images[i, 0, i % 8, i // 8] = 15
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    bits = []
    for _ in range(30):
        loss = model.bits_per_dim(images, 4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item())
    assert bits[-1] < bits[0] - 0.5


@pytest.mark.parametrize("name", MODELS)
def test_files_and_state_dicts_hold_the_whole_model(name: str, tmp_path: Path) -> None:
    model = made(name).eval()
    x = torch.randn(2, model.in_channels, 8, 8)
    expected = model(x)[1]
    model.save(tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    loaded = type(model).load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    other = MODELS[name]()
    other.load_state_dict(model.state_dict(), strict=True)
    for twin in (loaded, other, copy.deepcopy(model)):
        assert torch.equal(twin(x)[1], expected)
        assert twin.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.inverse(loaded(x)[0]), model.inverse(model(x)[0]))


def test_files_that_hold_no_such_model_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    model = made("glow")
    model.save(good)
    with pytest.raises(OSError, match="already exists"):
        model.save(good)
    model.save(good, overwrite=True)
    with pytest.raises(FileNotFoundError):
        Glow.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"`path` must hold a RealNVP of format 1; got Glow of format 1 in .*good"):
        RealNVP.load(good)
    bad.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"`path` must be a safetensors file; got .*bad"):
        Glow.load(bad)
    tensors = load_file(good)
    save_file(tensors, bad)
    with pytest.raises(ValueError, match="`path` must hold a Glow of format 1; got None of format None"):
        Glow.load(bad)
    metadata = {"fastflow_format": "1", "model": "Glow", "config": json.dumps(model.config)}
    for config, missing in ((metadata["config"], True), (json.dumps({**model.config, "n_steps": 3}), False), ("[", 0)):
        kept = {key: value for key, value in tensors.items() if not missing or key != "levels.0.1.actnorm.loc"}
        save_file(kept, bad, metadata=metadata | {"config": config})
        with pytest.raises(ValueError, match="`path` must hold tensors that fit their configuration; got "):
            Glow.load(bad)


def test_backends_agree() -> None:
    import fastflow

    model = made("glow")
    x = torch.randn(2, 1, 8, 8)
    zs, log_likelihood = model(x)
    with fastflow.use_backend("reference"):
        expected_zs, expected = model(x)
        back = model.inverse(zs)
    torch.testing.assert_close(zs, expected_zs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_likelihood, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_autocast_keeps_images_and_likelihood_wide() -> None:
    model = made("glow")
    x = torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        zs, log_likelihood = model(x)
        back = model.inverse(zs)
    assert log_likelihood.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)
    torch.testing.assert_close(log_likelihood, model(x)[1], rtol=0.02, atol=1)


ERRORS: list[tuple[Callable[[ImageFlow], Any], type[Exception], str]] = [
    (lambda m: Glow(0), ValueError, "`in_channels` must be at least 1; got 0"),
    (lambda m: Glow(1, 0), ValueError, "`n_levels` must be at least 1; got 0"),
    (lambda m: RealNVP(1, 1, 0), ValueError, "`hidden_channels` must be at least 1; got 0"),
    (lambda m: Glow(1, form="tanh"), ValueError, "`form` must be one of exp, sigmoid, additive; got 'tanh'"),
    (lambda m: m(torch.zeros(1, 1, 8)), ValueError, r"`x` must be \[B, C, H, W\]; got \[1, 1, 8\]"),
    (lambda m: m(torch.zeros(1, 3, 8, 8)), ValueError, r"`x` must be .* here \[\*, 1, \*, \*\]; got \[1, 3, 8, 8\]"),
    (lambda m: m(torch.zeros(1, 1, 6, 8)), ValueError, "`height` must be a multiple of 4, halved at each .*; got 6"),
    (lambda m: m(torch.zeros(1, 1, 8, 9)), ValueError, "`width` must be a multiple of 4, halved at each .*; got 9"),
    (lambda m: m(torch.zeros(1, 1, 0, 8)), ValueError, "`height` must be a multiple of 4, .*; got 0"),
    (lambda m: m(torch.zeros(1, 1, 8, 8).long()), TypeError, "`x` must be a floating-point tensor; got torch.int64"),
    (lambda m: m(torch.zeros(1, 1, 8, 8).double()), ValueError, "`x` must have the dtype of .*float32; got .*64"),
    (lambda m: m.inverse([]), ValueError, "`zs` must have 2 tensors, one per level; got 0"),
    (
        lambda m: m.inverse([torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 2, 3)]),
        ValueError,
        r"`zs\[0\]` must be \[B, C, H, W\], here \[1, 2, 4, 6\]; got \[1, 2, 4, 4\]",
    ),
    (lambda m: m.inverse([None, None]), TypeError, r"`zs\[-1\]` must be a tensor \[B, C, H, W\]; got NoneType"),
    (lambda m: m.sample(0, 8, 8), ValueError, "`count` must be at least 1; got 0"),
    (lambda m: m.sample(1, 8, 7), ValueError, "`width` must be a multiple of 4, halved at each squeeze; got 7"),
    (lambda m: m.sample(1, 8, 8, -1.0), ValueError, "`temperature` must be a finite number >= 0; got -1.0"),
    (lambda m: m.sample(1, 8, 8, math.nan), ValueError, "`temperature` must be a finite number >= 0; got nan"),
    (lambda m: m.bits_per_dim(torch.zeros(1, 1, 8, 8)), TypeError, "`images` must be a tensor of integers; got .*32"),
    (
        lambda m: m.bits_per_dim(torch.full((1, 1, 8, 8), 17), 4),
        ValueError,
        r"`images` must have values from 0 to 15 \(n_bits = 4\); got 17 to 17",
    ),
    (lambda m: m.bits_per_dim(torch.zeros(1, 1, 8, 8).long(), 9), ValueError, "`n_bits` must be 1 to 8; got 9"),
    (lambda m: quantize(torch.zeros(1), 0), ValueError, "`n_bits` must be 1 to 8; got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_was_expected(call: Callable[[ImageFlow], Any], error: type[Exception], message: str) -> None:
    model: nn.Module = made("glow")
    assert isinstance(model, ImageFlow)
    with pytest.raises(error, match=message):
        call(model)


def test_the_documents_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "glow.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    example, *_ = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)  # others: of training
    exec(compile(example, "glow.md", "exec"), names)
    torch.testing.assert_close(names["same"], names["x"], rtol=0, atol=1e-5)
    assert names["samples"].shape == (4, 3, 16, 16)
