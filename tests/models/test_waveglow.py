from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastflow import use_backend
from fastflow.models import WaveGlow, WaveGlowLoss
from fastflow.models.upsample import Upsample
from fastflow.nn import WN
from fastflow.ops import registry
from tests import golden

BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])
SMALL = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}


def published(case: str) -> WaveGlow:
    """The model of a golden case, its weights loaded under the published keys."""
    state = golden.make_state_dict(case)
    config = golden.config(case)
    for k in range(config["n_flows"]):  # glow_old spells the conditioning by layer
        for name in ("weight_g", "weight_v", "bias"):
            parts = [state.pop(key) for key in list(state) if re.fullmatch(rf"WN\.{k}\.cond_layers\.\d+\.{name}", key)]
            if parts:
                state[f"WN.{k}.cond_layer.{name}"] = torch.cat(parts)
    model = WaveGlow(**config)
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def full() -> Iterator[WaveGlow]:
    """The published 256-channel size, 88 million weights: made once."""
    return published("waveglow_256")


def small(**overrides: object) -> WaveGlow:
    torch.manual_seed(0)
    model = WaveGlow(
        **{"n_mel_channels": 4, "n_flows": 4, "n_group": 8, "n_early_every": 2, "n_early_size": 2, "WN_config": SMALL}
        | overrides
    )  # type: ignore[arg-type]
    for p in model.parameters():  # `end` starts at zero: give every coupling something to do
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


@pytest.mark.parametrize("case", ["waveglow_tiny", "waveglow_old"])
def test_golden_inference_in_float64(case: str) -> None:
    arrays = golden.load_case(case)
    audio = published(case).double().infer(arrays["mel"].double(), float(arrays["sigma"]), z=arrays["z"].double())
    expected = arrays["audio_out"].double()
    assert (audio - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["waveglow_tiny", "waveglow_old"])
def test_golden_inference_in_float32(case: str, backend: str) -> None:
    with use_backend(backend):
        assert golden.audio_error(published(case), case) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_inference_at_full_size_in_float32(full: WaveGlow, backend: str) -> None:
    with use_backend(backend):
        assert golden.audio_error(full, "waveglow_256") <= 1e-4


@pytest.mark.skipif("cpu" not in BACKENDS, reason="installed without compiled kernels")
def test_golden_inference_at_full_size_with_composed_weights(full: WaveGlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaveGlow, "_composes", lambda self, mel: True)  # it is too short to pay
    kept_in: list[Any] = []
    compose = Upsample.compose

    def seen(self: Upsample, weights: Any, biases: Any, out: Any) -> Any:
        kept_in.append(out)
        return compose(self, weights, biases, out)

    monkeypatch.setattr(Upsample, "compose", seen)
    with use_backend("cpu"):
        assert golden.audio_error(full, "waveglow_256") <= 1e-4
    first, *others = kept_in
    assert first is None and len(others) == 11 and all(out is not None for out in others), "one flow's memory for all"


@pytest.mark.parametrize("case", ["waveglow_tiny"])
def test_golden_training_direction_in_float64(case: str) -> None:
    golden.check_training_direction(published(case).double(), case, torch.float64, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_training_direction_in_float32(backend: str) -> None:
    with use_backend(backend):
        golden.check_training_direction(published("waveglow_tiny"), "waveglow_tiny", torch.float32, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_training_direction_at_full_size_in_float32(full: WaveGlow, backend: str) -> None:
    with use_backend(backend):
        golden.check_training_direction(full, "waveglow_256", torch.float32, 1e-4)


def test_golden_at_full_size_in_float64(full: WaveGlow) -> None:
    model = copy.deepcopy(full).double()
    arrays = golden.load_case("waveglow_256")
    audio = model.infer(arrays["mel"].double(), float(arrays["sigma"]), z=arrays["z"].double())
    expected = arrays["audio_out"].double()
    assert (audio - expected).abs().max() <= 1e-6 * expected.abs().max()
    golden.check_training_direction(model, "waveglow_256", torch.float64, 1e-6)


@pytest.mark.parametrize("case", ["waveglow_tiny", "waveglow_256"])
def test_state_dict_keys_and_shapes_are_the_published_ones(case: str) -> None:
    with torch.device("meta"):
        model = WaveGlow(**golden.config(case))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == golden.spec(case)


def reconstruction(model: WaveGlow, mel: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """Audio to noise and back; z's channels go from the order in which they left to the order of drawing."""
    with torch.no_grad():
        z, _, _ = model((mel, audio))
    early = z.shape[1] - model.n_remaining_channels
    parts = z[:, :early].split(model.n_early_size, 1) if early else ()
    return model.infer(mel, 1.0, z=torch.cat((z[:, early:], *reversed(parts)), 1))


@pytest.mark.parametrize("options", [{}, {"alternate_halves": True}, {"conditioning": "group"}, {"n_early_size": 0}])
def test_forward_then_inverse_returns_the_audio(options: dict[str, object]) -> None:
    model = small(**options)
    mel, audio = torch.randn(2, 4, 6), 0.1 * torch.randn(2, 6 * 256)
    error = reconstruction(model, mel, audio) - audio
    assert error.square().mean().sqrt() <= 1e-4


def test_forward_then_inverse_with_published_weights() -> None:
    model = published("waveglow_tiny")
    arrays = golden.load_case("waveglow_tiny")
    audio = arrays["train_audio"]
    frames = audio.shape[1] // 256
    error = reconstruction(model, arrays["mel"][:, :, :frames], audio) - audio
    assert error.square().mean().sqrt() <= 1e-4


def test_log_determinants_are_those_of_the_jacobian() -> None:
    model = small(WN_config={"n_layers": 1, "n_channels": 4, "kernel_size": 3}).double()
    mel, audio = torch.randn(1, 4, 1, dtype=torch.float64), torch.randn(1, 64, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda a: model((mel, a))[0].flatten(), audio)[:, 0]
    _, log_s, log_det_w = model((mel, audio))
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(sum(s.sum() for s in log_s) + sum(log_det_w), expected)


def test_same_noise_gives_the_same_bits_and_generators_repeat() -> None:
    model = small()
    mel = torch.randn(1, 4, 5)
    z = torch.randn(1, 8, 160)
    assert torch.equal(model.infer(mel, 0.6, z=z), model.infer(mel, 0.6, z=z))
    first, second = (model.infer(mel, 0.6, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.infer(mel, 0.6, generator=torch.Generator().manual_seed(4)))


def test_draws_come_in_the_published_order() -> None:
    model = small()
    mel = torch.randn(1, 4, 5)
    drawing = torch.Generator().manual_seed(3)
    z = torch.cat([torch.randn(1, width, 160, generator=drawing) for width in (6, 2)], 1)
    assert torch.equal(model.infer(mel, 0.6, z=z), model.infer(mel, 0.6, generator=torch.Generator().manual_seed(3)))


def test_no_frames_give_no_samples() -> None:
    assert small().infer(torch.zeros(2, 4, 0)).shape == (2, 0)
    assert small(conditioning="group").infer(torch.zeros(2, 4, 0)).shape == (2, 0)


def test_batch_items_do_not_influence_each_other() -> None:
    model = small()
    mel, z = torch.randn(3, 4, 5), torch.randn(3, 8, 160)
    whole = model.infer(mel, z=z)
    for b in range(3):
        torch.testing.assert_close(model.infer(mel[b : b + 1], z=z[b : b + 1]), whole[b : b + 1])


def test_strict_loading_in_both_directions_and_without_weight_norm() -> None:
    model, other = small(), small()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01)
    other.load_state_dict(model.state_dict(), strict=True)
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 160)
    expected = model.infer(mel, z=z)
    assert torch.equal(other.infer(mel, z=z), expected)

    plain = WaveGlow.remove_weightnorm(small(), small())
    assert not [k for k in plain.state_dict() if k.endswith(("weight_g", "weight_v"))]
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(plain.infer(mel, z=z), expected)
    other.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(other.infer(mel, z=z), expected)


def test_parametrized_spelling_is_accepted() -> None:
    model, other = small(), small()
    state = {
        k.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): v + 0.01
        for k, v in model.state_dict().items()
    }
    other.load_state_dict(state, strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key] + 0.01), key


@pytest.mark.parametrize("change", ["in place", "data", "load", "inverse", "through data, in training"])
def test_packed_weights_follow_their_parameters(change: str) -> None:
    model = small()
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 160)
    before = model.infer(mel, z=z)
    with torch.no_grad():
        if change == "in place":
            model.WN[1].in_layers[0].weight_g.mul_(2)
        elif change == "data":
            model.WN[1].in_layers[0].weight_g.data = model.WN[1].in_layers[0].weight_g.data * 2
        elif change == "through data, in training":  # leaves no trace on the parameter itself
            model.train()
            model.WN[1].in_layers[0].weight_g.data.mul_(2)
            model.convinv[1].conv.weight.data.mul_(2)
            model.eval()
        elif change == "load":
            model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})
        else:
            model.convinv[1].conv.weight.mul_(2)
    after = model.infer(mel, z=z)
    assert not torch.equal(after, before)
    fresh = small()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.infer(mel, z=z), after)


def test_weights_are_folded_once_not_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastflow.nn import conv

    model = small()
    mel = torch.randn(1, 4, 5)
    model.infer(mel)
    monkeypatch.setattr(conv, "fold", lambda *_: pytest.fail("folded again"))
    model.infer(mel)


def test_dtype_change_and_copies() -> None:
    model = small()
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 160)
    expected = model.infer(mel, z=z)
    torch.testing.assert_close(model.double().infer(mel.double(), z=z.double()).float(), expected)
    assert torch.equal(model.float().infer(mel, z=z), expected)
    assert torch.equal(copy.deepcopy(model).infer(mel, z=z), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).infer(mel, z=z), expected)


def published_block(wn: WN, h: torch.Tensor, cond: torch.Tensor, mask: object, weights: None) -> torch.Tensor:
    """The gated stack in plain PyTorch modules, as the published code runs it."""
    projected = wn.cond_layer(cond)
    out, c = torch.zeros_like(h), h.shape[1]
    for i, (conv, res_skip) in enumerate(zip(wn.in_layers, wn.res_skip_layers, strict=True)):
        u = conv(h) + projected[:, 2 * c * i : 2 * c * (i + 1)]
        r = res_skip(torch.tanh(u[:, :c]) * torch.sigmoid(u[:, c:]))
        h, out = (h + r[:, :c], out + r[:, c:]) if i < len(wn.in_layers) - 1 else (h, out + r)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published("waveglow_tiny")
    arrays = golden.load_case("waveglow_tiny")
    expected = model.infer(arrays["mel"], 0.6, z=arrays["z"])

    def error() -> torch.Tensor:
        got = model.infer(arrays["mel"].to(dtype), 0.6, z=arrays["z"].to(dtype))
        assert got.dtype == dtype
        return (got.float() - expected).square().mean().sqrt()

    model.to(dtype)
    ours = error()
    monkeypatch.setattr(WN, "forward", published_block)
    plain = error()
    assert 0 < ours <= 2 * plain


def test_replicas_of_data_parallel_learn_and_follow() -> None:
    """They hold tensors in place of parameters, share the original's attributes, and may run in several threads."""
    model = small()
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 160)
    model.infer(mel, z=z)  # fills the caches that replicas share
    replica = replicate_on_cpu(model)
    expected = small()
    with torch.no_grad():
        for p, q in zip(model.parameters(), expected.parameters(), strict=True):
            p.mul_(1.1)
            q.copy_(p)
    assert torch.equal(replicate_on_cpu(model).infer(mel, z=z), expected.infer(mel, z=z))
    WaveGlowLoss()(replica((mel, 0.1 * torch.randn(1, 1024)))).backward()
    assert all(p.grad is not None for p in model.parameters())


def replicate_on_cpu(module: torch.nn.Module) -> torch.nn.Module:
    """What torch.nn.parallel.replicate makes for one device."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.view_as(parameter))  # not a leaf, and no Parameter
    for name, child in module._modules.items():
        if child is not None:
            replica._modules[name] = replicate_on_cpu(child)
    return replica


def test_works_under_inference_mode_and_trains_afterwards() -> None:
    model = small()
    with torch.inference_mode():
        model.infer(torch.randn(1, 4, 5))
    mel, audio = torch.randn(1, 4, 5), 0.1 * torch.randn(1, 1024)
    WaveGlowLoss()(model((mel, audio))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_gradients_flow_through_a_frozen_model_to_its_input() -> None:
    model = small().requires_grad_(False)
    with torch.inference_mode():
        model.infer(torch.randn(1, 4, 5))
    mel = torch.randn(1, 4, 5, requires_grad=True)
    WaveGlowLoss()(model((mel, 0.1 * torch.randn(1, 1024)))).backward()
    assert mel.grad is not None and mel.grad.abs().sum() > 0


def test_between_two_stacks_there_is_one_operation() -> None:
    calls: list[str] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "fastflow":
                calls.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    model = small()
    with Recorder():
        model.infer(torch.randn(1, 4, 5))
    assert calls == ["wn", "flow_step"] * 4
    calls.clear()
    with torch.no_grad(), Recorder():
        model((torch.randn(1, 4, 5), torch.randn(1, 1024)))
    assert calls == ["invconv1x1", *["wn", "flow_step"] * 4]


def test_coupling_network_alone_ends_in_shift_and_log_scale() -> None:
    net = small().WN[0]
    h, cond = torch.randn(2, 4, 9), torch.randn(2, 32, 9)
    hidden = net(h, cond, end=False)
    assert hidden.shape == (2, 8, 9)
    torch.testing.assert_close(net(h, cond), net.end(hidden))


def test_under_autocast_the_flow_itself_stays_float32() -> None:
    model = small()
    mel, z, audio = torch.randn(1, 4, 5), torch.randn(1, 8, 160), 0.1 * torch.randn(1, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.infer(mel, z=z)
        noise, log_s, _ = model((mel, audio))
    assert got.dtype == noise.dtype == log_s[0].dtype == torch.float32
    torch.testing.assert_close(got, model.infer(mel, z=z), rtol=0.1, atol=0.1)
    torch.testing.assert_close(noise, model((mel, audio))[0], rtol=0.1, atol=0.1)


def test_compiles_whole_and_once_for_all_lengths_and_sigmas() -> None:
    torch._dynamo.reset()
    model, counter = small(), CompileCounter()
    compiled = torch.compile(model.infer, fullgraph=True, dynamic=True, backend=counter)
    for frames, sigma in ((5, 0.6), (6, 0.7), (9, 1.3)):
        mel, z = torch.randn(2, 4, frames), torch.randn(2, 8, frames * 32)
        torch.testing.assert_close(compiled(mel, sigma, z=z), model.infer(mel, sigma, z=z))
    assert counter.frame_count == 1


BAD_SIZES = [
    ({"n_group": 7}, "`n_group` must be even, since channels are halved; got 7"),
    ({"n_early_size": 3}, "`n_early_size` must be even"),
    ({"n_flows": 0}, "`n_flows` must be at least 1; got 0"),
    ({"n_flows": 40}, "`n_group` must leave at least 2 channels after the early outputs; got -30 of 8"),
    ({"WN_config": {"n_layers": 2}}, r"`WN_config` must have the keys \['kernel_size', 'n_channels', 'n_layers'\]"),
    ({"WN_config": SMALL | {"kernel_size": 4}}, "`kernel_size` must be odd; got 4"),
    ({"conditioning": "frame"}, "`conditioning` must be one of sample, group; got 'frame'"),
    ({"hop_length": 100}, "`hop_length` must be a positive multiple of n_group = 8; got 100"),
    ({"win_length": 128}, "`win_length` must be at least hop_length = 256"),
]


@pytest.mark.parametrize(("sizes", "message"), BAD_SIZES)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**sizes)


def nan_at(*index: int) -> torch.Tensor:
    mel = torch.zeros(2, 4, 5)
    mel[index] = float("nan")
    mel[1, 3, 4] = float("inf")
    return mel


BAD_INFER = [
    ({"mel": torch.zeros(4, 5)}, ValueError, r"`mel` must be \[B, 4, T\]; got \[4, 5\]"),
    ({"mel": torch.zeros(1, 5, 5)}, ValueError, r"`mel` must be \[B, 4, T\]; got \[1, 5, 5\]"),
    (
        {"mel": torch.zeros(1, 4, 5, dtype=torch.int64)},
        TypeError,
        r"`mel` must be a floating-point tensor; got torch\.int64",
    ),
    ({"mel": [1.0]}, TypeError, "`mel` must be a tensor; got list"),
    (
        {"mel": torch.zeros(1, 4, 5, dtype=torch.float64)},
        ValueError,
        r"`mel` must have the model's dtype, torch\.float32",
    ),
    ({"mel": torch.zeros(1, 4, 5, device="meta")}, ValueError, "`mel` must be on the model's device, cpu; got meta"),
    ({"mel": nan_at(0, 2, 1)}, ValueError, r"got 2 non-finite of 40 values, the first at \[0, 2, 1\]"),
    ({"sigma": -0.5}, ValueError, r"`sigma` must be a finite number >= 0; got -0\.5"),
    ({"sigma": float("nan")}, ValueError, "`sigma` must be a finite number >= 0; got nan"),
    (
        {"z": torch.zeros(1, 8, 159)},
        ValueError,
        r"`z` must be \[B, n_group, F \* hop_length / n_group\], here \[1, 8, 160\]; got \[1, 8, 159\]",
    ),
    (
        {"z": torch.zeros(1, 8, 160), "generator": torch.Generator()},
        ValueError,
        "`generator` must be None where `z` is given",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_INFER)
def test_bad_input_to_infer_is_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small().infer(**({"mel": torch.zeros(1, 4, 5)} | arguments))  # type: ignore[arg-type]


def test_generator_of_another_device_is_named() -> None:
    with pytest.raises(ValueError, match="`generator` must be on the device of `mel`, meta; got cpu"):
        small()._noise(torch.zeros(1, 4, 5, device="meta"), 160, None, torch.Generator())


def test_bad_input_to_forward_is_named() -> None:
    model, mel = small(), torch.zeros(1, 4, 5)
    with pytest.raises(ValueError, match=r"`audio` must be \[B, T\], here \[1, \*\]; got \[2, 64\]"):
        model((mel, torch.zeros(2, 64)))
    with pytest.raises(
        ValueError, match=r"multiple of n_group = 8 samples and at most the 2048 that .* got \[1, 2056\]"
    ):
        model((mel, torch.zeros(1, 2056)))
    with pytest.raises(ValueError, match=r"multiple of n_group = 8 .* got \[1, 63\]"):
        model((mel, torch.zeros(1, 63)))


def test_singular_1x1_weight_is_named() -> None:
    model = small()
    with torch.no_grad():
        model.convinv[2].conv.weight.zero_()
    with pytest.raises(
        ValueError, match=r"`convinv\.2\.conv\.weight` must be invertible; got a singular matrix \[6, 6\]"
    ):
        model.infer(torch.zeros(1, 4, 5))


def test_loss_sigma_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`sigma` must be positive; got 0"):
        WaveGlowLoss(0.0)
