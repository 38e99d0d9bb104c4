from __future__ import annotations

import copy
import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastflow import use_backend
from fastflow.models import FloWaveNet
from fastflow.models.flowavenet import squeeze, unsqueeze
from fastflow.nn import ActNorm
from fastflow.ops import registry
from tests import golden

BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])


def published(case: str) -> FloWaveNet:
    """The model of a golden case, its weights loaded under the published keys."""
    with torch.device("meta"):
        model = FloWaveNet(**golden.config(case))
    model.load_state_dict(golden.make_state_dict(case), strict=True, assign=True)
    return model.eval()


@pytest.fixture(scope="module")
def default() -> FloWaveNet:
    """The published size, 183 million weights: made once."""
    return published("flowavenet_default")


def small(**overrides: object) -> FloWaveNet:
    torch.manual_seed(0)
    sizes = {"in_channel": 1, "cin_channel": 4, "n_block": 3, "n_flow": 2, "n_layer": 2, "block_per_split": 2}
    model = FloWaveNet(**(sizes | {"filter_size": 8, "pretrained": True} | overrides))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in model.named_parameters():  # what starts at zero or one: give it something to do
            if not p.any() or name.endswith(".actnorm.scale"):
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def check_golden(model: FloWaveNet, case: str, dtype: torch.dtype) -> None:
    """float64: the largest error, relative to the largest value; float32: the rms, relative to the rms."""
    arrays = golden.load_case(case)
    with torch.no_grad():
        audio = model.reverse(arrays["z"].to(dtype), arrays["mel"].to(dtype))
        log_p, log_det = model(arrays["train_audio"].to(dtype), arrays["mel"].to(dtype))
    expected = arrays["audio_out"].double()
    error = audio.double() - expected
    if dtype == torch.float64:
        assert error.abs().max() <= 1e-6 * expected.abs().max()
    else:
        assert error.square().mean().sqrt() <= 1e-4 * expected.square().mean().sqrt()
    bound = 1e-6 if dtype == torch.float64 else 1e-4
    assert abs(log_p - arrays["train_log_p"]) <= bound * arrays["train_log_p"].abs()
    assert abs(log_det - arrays["train_logdet"]) <= bound * arrays["train_logdet"].abs()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(dtype: torch.dtype, backend: str) -> None:
    with use_backend(backend):
        check_golden(published("flowavenet_tiny").to(dtype), "flowavenet_tiny", dtype)


def test_golden_at_the_published_size(default: FloWaveNet) -> None:
    check_golden(default, "flowavenet_default", torch.float32)
    check_golden(default.double(), "flowavenet_default", torch.float64)


@pytest.mark.parametrize("case", ["flowavenet_tiny", "flowavenet_default"])
def test_state_dict_keys_and_shapes_are_the_published_ones(case: str) -> None:
    with torch.device("meta"):
        model = FloWaveNet(**golden.config(case))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == golden.spec(case)


def test_several_squeezes_at_once_are_squeezes_one_after_the_other() -> None:
    x = torch.randn(2, 3, 16)
    one = squeeze(x)
    assert torch.equal(one[:, 4], x[:, 2, 0::2])
    assert torch.equal(squeeze(x, 3), squeeze(squeeze(one)))
    assert torch.equal(unsqueeze(one), x)


OPTIONS = [{}, {"affine": False}, {"block_per_split": 1}, {"block_per_split": 8}, {"in_channel": 2, "n_layer": 1}]


def noise_of(model: FloWaveNet, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The z [B, C, T] from which `reverse` makes x: what `forward` weighs, found by its own formulas."""
    cond, parts = model.upsample(c), []
    for b, block in enumerate(model._blocks()):
        x = squeeze(x)
        halves = model._halves(cond, b, False)
        for flow in block.flows:
            x, _ = flow.actnorm(x)
            x, _ = flow.leave(x, flow.hidden(x.chunk(2, 1)[0], halves[0]))
            halves = halves[::-1]
        if block.prior is not None:
            x, leaving = x.chunk(2, 1)
            mean, log_sd = block.prior_of(x, halves)
            parts.append((leaving - mean) * torch.exp(-log_sd))
    for b in reversed(range(model.n_block)):
        x = unsqueeze(torch.cat((x, parts.pop()), 1) if model._splits_after(b) else x)
    return x


@pytest.mark.parametrize("options", OPTIONS)
def test_reverse_is_the_inverse_of_forward(options: dict[str, object]) -> None:
    model = small(**options).double()
    c = torch.randn(2, 4, 2, dtype=torch.float64)
    x = torch.randn(2, model.in_channel, 512, dtype=torch.float64)
    with torch.no_grad():
        z = noise_of(model, x, c)
        torch.testing.assert_close(model.reverse(z, c), x)
        log_p, log_det = model(x, c)
    # the density of z, and of what the priors stretched, are those of the formulas
    whole = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() / 1024
    if model.block_per_split == 8:
        torch.testing.assert_close(log_p, whole)
    assert torch.isfinite(log_p + log_det)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"block_per_split": 1}])
def test_densities_are_those_of_the_jacobian(options: dict[str, object]) -> None:
    model = small(**options, n_layer=1).double()
    c, x = torch.randn(1, 4, 1, dtype=torch.float64), torch.randn(1, 1, 256, dtype=torch.float64)
    with torch.no_grad():  # each sample changed alone, all of them in one batch
        steps = 1e-6 * torch.eye(256, dtype=torch.float64)[:, None]
        ahead, behind = (noise_of(model, x + step, c.expand(256, 4, 1))[:, 0] for step in (steps, -steps))
        jacobian = (ahead - behind) / 2e-6
        z = noise_of(model, x, c)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(sum(model(x, c)), expected / 256, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(backend: str) -> None:
    model = small().double().train()
    c, x = torch.randn(2, 4, 1, dtype=torch.float64), torch.randn(2, 1, 256, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    with use_backend(backend):
        (-sum(model(x, c))).backward()
        unused = {name for name, p in parameters.items() if p.grad is None}
        assert {name.split(".res_blocks.")[-1].rpartition(".")[0] for name in unused} == {"1.res_conv"}
        directions = {name: torch.randn_like(p) for name, p in parameters.items()}
        slope = sum((p.grad * directions[name]).sum() for name, p in parameters.items() if p.grad is not None)
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for name, p in parameters.items():
                    p.add_(step * directions[name])
                losses.append(-sum(model(x, c)))
                for name, p in parameters.items():
                    p.sub_(step * directions[name])
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-6, slope, rtol=1e-6, atol=1e-8)


def test_first_forward_initialises_actnorm_from_its_data() -> None:
    model = small(pretrained=False).train()
    with pytest.raises(RuntimeError, match="ActNorm must see data"):
        model.infer(torch.zeros(1, 4, 1))
    seen: list[torch.Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, ActNorm)]
    hooks = [norm.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for norm in norms]
    c, x = torch.randn(3, 4, 2), 0.1 * torch.randn(3, 1, 512)
    model(x, c)
    assert len(seen) == 6
    for y in seen:
        torch.testing.assert_close(y.mean((0, 2)), torch.zeros(y.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(y.transpose(0, 1).flatten(1).std(1), torch.ones(y.shape[1]), atol=1e-4, rtol=0)
    for hook in hooks:
        hook.remove()
    before = [norm.loc.clone() for norm in norms]
    model(x + 1, c)
    assert all(torch.equal(norm.loc, loc) for norm, loc in zip(norms, before, strict=True))


def test_a_loaded_state_dict_counts_as_initialised() -> None:
    other = small(pretrained=False)
    other.load_state_dict(small().state_dict(), strict=True)
    mel, z = torch.randn(1, 4, 3), torch.randn(1, 1, 768)
    assert torch.equal(other.infer(mel, z=z), small().infer(mel, z=z))


def test_infer_is_reverse_of_scaled_noise() -> None:
    model = small()
    mel, z = torch.randn(2, 4, 3), torch.randn(2, 1, 768)
    audio = model.infer(mel, 0.7, z=z)
    assert audio.shape == (2, 768)
    assert torch.equal(audio, model.reverse(0.7 * z, mel)[:, 0])
    assert torch.equal(audio, model.reverse(0.7 * z, model.upsample(mel))[:, 0])
    drawn = torch.randn(2, 1, 768, generator=torch.Generator().manual_seed(3))
    repeated = model.infer(mel, generator=torch.Generator().manual_seed(3))
    assert torch.equal(repeated, model.infer(mel, 0.8, z=drawn))


def test_no_frames_give_no_samples() -> None:
    assert small().infer(torch.zeros(2, 4, 0)).shape == (2, 0)


def test_batch_items_do_not_influence_each_other() -> None:
    model = small()
    mel, z = torch.randn(3, 4, 2), torch.randn(3, 1, 512)
    whole = model.infer(mel, z=z)
    for b in range(3):
        torch.testing.assert_close(model.infer(mel[b : b + 1], z=z[b : b + 1]), whole[b : b + 1])


def test_strict_loading_in_both_directions_and_without_weight_norm() -> None:
    model, plain = small(), small()
    mel, z = torch.randn(1, 4, 2), torch.randn(1, 1, 512)
    expected = model.infer(mel, z=z)
    plain.remove_weight_norm()
    assert not [k for k in plain.state_dict() if k.endswith(("weight_g", "weight_v"))]
    torch.testing.assert_close(plain.infer(mel, z=z), expected)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.01)
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(plain.infer(mel, z=z), expected)
    other = small()
    other.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(other.infer(mel, z=z), expected)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.flows.0.coupling.net.res_blocks.0.gate_conv.conv.weight_g",
        "blocks.1.flows.1.coupling.net.final_conv.3.scale",
        "blocks.1.prior.final_conv.3.conv.bias",
        "blocks.2.flows.0.actnorm.scale",
        "upsample_conv.2.weight_v",
    ],
)
def test_packed_weights_follow_their_parameters(name: str) -> None:
    model = small()
    mel, z = torch.randn(1, 4, 2), torch.randn(1, 1, 512)
    before = model.infer(mel, z=z)
    with torch.no_grad():
        model.get_parameter(name).mul_(1 + 0.5 * torch.rand_like(model.get_parameter(name)))
    after = model.infer(mel, z=z)
    assert not torch.equal(after, before)
    fresh = small()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.infer(mel, z=z), after)


def test_weights_are_folded_once_not_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastflow.nn import conv

    model = small()
    model.infer(torch.randn(1, 4, 2))
    monkeypatch.setattr(conv, "fold", lambda *_: pytest.fail("folded again"))
    model.infer(torch.randn(1, 4, 2))


def test_dtype_change_and_copies() -> None:
    model = small()
    mel, z = torch.randn(1, 4, 2), torch.randn(1, 1, 512)
    expected = model.infer(mel, z=z)
    assert torch.equal(copy.deepcopy(model).infer(mel, z=z), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).infer(mel, z=z), expected)
    torch.testing.assert_close(model.double().infer(mel.double(), z=z.double()).float(), expected)
    half = model.half().infer(mel.half(), z=z.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_under_autocast_the_flow_itself_stays_float32() -> None:
    model = small()
    mel, z = torch.randn(1, 4, 2), torch.randn(1, 1, 512)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.infer(mel, z=z)
        log_p, log_det = model(z, mel)
    assert got.dtype == log_p.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(got, model.infer(mel, z=z), rtol=0.1, atol=0.1)


def test_works_under_inference_mode_and_trains_afterwards() -> None:
    model = small()
    with torch.inference_mode():
        model.infer(torch.randn(1, 4, 1))
    mel = torch.randn(1, 4, 1, requires_grad=True)
    (-sum(model(torch.randn(1, 1, 256), mel))).backward()
    assert mel.grad is not None and mel.grad.abs().sum() > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_compiles_whole_and_once_for_all_lengths_and_sigmas() -> None:
    torch._dynamo.reset()
    model, counter = small(n_block=2, n_flow=1, n_layer=1, block_per_split=1), CompileCounter()
    compiled = torch.compile(model.infer, fullgraph=True, dynamic=True, backend=counter)
    for frames, sigma in ((3, 0.6), (4, 0.7), (5, 1.3)):
        mel, z = torch.randn(2, 4, frames), torch.randn(2, 1, frames * 256)
        torch.testing.assert_close(compiled(mel, sigma, z=z), model.infer(mel, sigma, z=z))
    assert counter.frame_count == 1


def test_networks_are_those_that_a_synthesis_runs() -> None:
    model, calls = small(), []
    for net in model.networks():
        net.register_forward_hook(lambda *_: calls.append(1))
    model.infer(torch.randn(1, 4, 1))
    assert len(calls) == len(model.networks()) == 3 * 2 + 1


BAD_CALLS = [
    ("infer", (torch.zeros(1, 5, 2),), r"`mel` must be \[B, 4, T\]; got \[1, 5, 2\]"),
    ("infer", (torch.full((1, 4, 2), float("nan")),), "`mel` must be finite; got 8 non-finite of 8"),
    ("infer", (torch.zeros(1, 4, 2), -1.0), "`sigma` must be a finite number >= 0; got -1.0"),
    ("reverse", (torch.zeros(1, 512), torch.zeros(1, 4, 2)), r"`z` must be \[B, in_channel, T\]; got \[1, 512\]"),
    ("reverse", (torch.zeros(2, 1, 512), torch.zeros(1, 4, 2)), r"here \[1, 1, \*\]; got \[2, 1, 512\]"),
    (
        "reverse",
        (torch.zeros(1, 1, 510), torch.zeros(1, 4, 2)),
        r"multiple of 2\*\*n_block = 8 samples; got \[1, 1, 510",
    ),
    (
        "forward",
        (torch.zeros(1, 1, 512), torch.zeros(1, 4, 3)),
        r"F \* 256 the length of the audio, 512; got \[1, 4, 3\]",
    ),
    ("forward", (torch.zeros(1, 1, 512), torch.zeros(1, 3, 2)), r"`c` must be \[B, 4, T\]; got \[1, 3, 2\]"),
    ("forward", (torch.zeros(1, 1, 512).double(), torch.zeros(1, 4, 2)), "`x` must have the dtype of `c`"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), BAD_CALLS)
def test_bad_input_is_named(method: str, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(small(), method)(*arguments)


@pytest.mark.parametrize("name", ["in_channel", "cin_channel", "n_block", "n_flow", "n_layer", "block_per_split"])
def test_sizes_that_do_not_fit_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        small(**{name: 0})
