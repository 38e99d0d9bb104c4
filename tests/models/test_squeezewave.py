from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fastflow import use_backend
from fastflow.models import GraphedInfer, SqueezeWave, WaveGlowLoss, graphed
from fastflow.models.squeezewave import SeparableNet
from fastflow.ops import registry
from tests.models import squeezewave_twin as twins

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")

BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])


def pair(group: int = 128, flows: int = 4) -> tuple[SqueezeWave, twins.SqueezeWave]:
    """A small model, and its twin with the same weights."""
    twin = twins.filled(twins.SqueezeWave(5, flows, group, 2, 16, layers=2, width=12))
    sizes = {"n_layers": 2, "n_channels": 12, "kernel_size": 3}
    model = SqueezeWave(5, flows, group, 2, 16, sizes)
    model.load_state_dict(twin.state_dict(), strict=True)
    return model.eval(), twin


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_the_published_formulas(group: int, dtype: torch.dtype, backend: str) -> None:
    model, twin = (m.to(dtype) for m in pair(group))
    mel, audio = torch.randn(2, 5, 7, dtype=dtype), 0.1 * torch.randn(2, 7 * 256, dtype=dtype)
    bound = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    with use_backend(backend), torch.no_grad():
        got, want = model.infer(mel, 0.7, generator=seeded()), twin.infer(mel, 0.7, seeded())
        assert got.shape == (2, 7 * 256)
        torch.testing.assert_close(got, want, **bound)
        z, log_s, log_det_w = model((mel, audio))
        twin_z, twin_log_s, twin_log_det_w = twin(mel, audio)
    torch.testing.assert_close(z, twin_z, **bound)
    for mine, theirs in zip(log_s, twin_log_s, strict=True):
        torch.testing.assert_close(mine, theirs.sum((1, 2)), **bound)
    torch.testing.assert_close(torch.stack(log_det_w), torch.stack(twin_log_det_w), **bound)


def test_training_equals_the_published_one() -> None:
    model, twin = (m.double().train() for m in pair())
    mel, audio = torch.randn(2, 5, 7, dtype=torch.float64), 0.1 * torch.randn(2, 7 * 256, dtype=torch.float64)
    for m, out in ((model, model((mel, audio))), (twin, twin(mel, audio))):
        WaveGlowLoss()(out).backward()
        assert all(p.grad is not None for p in m.parameters())
    grads = {name: p.grad for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-8, atol=1e-10, msg=name)
    # batch normalisation has learned the same statistics
    state = twin.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key])


def test_loading_in_the_other_direction() -> None:
    model, twin = pair()
    twin.load_state_dict(model.state_dict(), strict=True)
    assert set(model.state_dict()) == set(twin.state_dict())


@pytest.mark.parametrize(
    ("group", "width", "weights"), [(128, 256, 23665184), (256, 256, 24723488), (128, 128, 7165472)]
)
def test_published_sizes(group: int, width: int, weights: int) -> None:
    with torch.device("meta"):
        model = SqueezeWave(80, 12, group, 2, 16, {"n_layers": 8, "n_channels": width, "kernel_size": 3})
    assert sum(p.numel() for p in model.parameters()) == weights


def test_given_noise_repeats_the_draws_in_their_published_order() -> None:
    model, _ = pair()
    mel, drawing = torch.randn(1, 5, 3), seeded()
    z = torch.cat([torch.randn(1, width, 6, generator=drawing) for width in (112, 16)], 1)
    assert torch.equal(model.infer(mel, 0.7, z=z), model.infer(mel, 0.7, generator=seeded()))
    assert not torch.equal(model.infer(mel, 0.0, z=z), model.infer(mel, 0.0, z=torch.zeros_like(z)))  # as published


def test_forward_then_inverse_returns_the_audio() -> None:
    model, _ = pair()
    mel, audio = torch.randn(2, 5, 4), 0.1 * torch.randn(2, 4 * 256)
    with torch.no_grad():
        z, _, _ = model((mel, audio))
    again = model.infer(mel, z=torch.cat((z[:, 16:], z[:, :16]), 1))
    assert (again - audio).square().mean().sqrt() <= 1e-4


def test_no_frames_give_no_samples() -> None:
    assert pair()[0].infer(torch.zeros(2, 5, 0)).shape == (2, 0)


def test_copies_dtypes_and_weight_norm() -> None:
    model, _ = pair()
    mel, z = torch.randn(1, 5, 3), torch.randn(1, 128, 6)
    expected = model.infer(mel, z=z)
    assert torch.equal(copy.deepcopy(model).infer(mel, z=z), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False).infer(mel, z=z), expected)
    half = copy.deepcopy(model).half().infer(mel.half(), z=z.half())
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    plain = copy.deepcopy(model).remove_weightnorm()
    assert not [key for key in plain.state_dict() if key.endswith("weight_g")]
    torch.testing.assert_close(plain.infer(mel, z=z), expected)  # both ends included
    plain.load_state_dict(model.state_dict(), strict=True)


def test_one_graph_gives_what_infer_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(run, device):  # replay by running again
        out = run()
        return lambda: out.copy_(run()), out

    monkeypatch.setattr(graphed, "record", record)
    model, _ = pair()
    infer, mel, z = GraphedInfer(model, 1, 3), torch.randn(1, 5, 3), torch.randn(1, 128, 6)
    assert torch.equal(infer(mel, 0.5, z=z), model.infer(mel, 0.5, z=z))


with_kernel = pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend cannot run")


@contextmanager
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect which kernel each network ran in, None for the layers one by one."""
    calls: list[Any] = []
    with monkeypatch.context() as patch:
        for name in ("_layers", "_in_one"):
            run = getattr(SeparableNet, name)
            patch.setattr(SeparableNet, name, lambda *a, name=name, run=run: (calls.append(name), run(*a))[1])
        yield calls


@with_kernel
def test_the_kernel_runs_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(flows=2)
    mel, audio = torch.randn(1, 5, 3), 0.1 * torch.randn(1, 3 * 256)
    with use_backend("cpu"), kernel_calls(monkeypatch) as calls:
        model.infer(mel)
        with torch.no_grad():
            model((mel, audio))
        assert set(calls) == {"_in_one"} and len(calls) == 4
        calls.clear()
        model((mel, audio))  # gradients are recorded
        with torch.autocast("cpu", torch.bfloat16):
            model.infer(mel)
        with use_backend("reference"):
            model.infer(mel)
        with torch.no_grad():
            model.train()((mel, audio))
        assert set(calls) == {"_layers"} and len(calls) == 8


@with_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_sees_every_change_of_the_weights(dtype: torch.dtype) -> None:
    model, _ = pair(flows=2)
    model.to(dtype)
    mel, z = torch.randn(1, 5, 3, dtype=dtype), torch.randn(1, 128, 6, dtype=dtype)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with use_backend("cpu"):
            got = model.infer(mel, z=z)
        with use_backend("reference"):
            return got, model.infer(mel, z=z)

    before, _ = both()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "WN.0." not in name or not tensor.is_floating_point() or "in_layers.1" in name:
            continue
        with torch.no_grad():
            tensor.mul_(1.5).add_(0.1)
        got, expected = both()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=name)
        assert not torch.equal(got, before), name
        before = got


@with_kernel
def test_bfloat16_errs_at_most_twice_as_much_as_plain_pytorch() -> None:
    net = pair()[0].WN[0].bfloat16()
    h, mel = torch.randn(2, net.start.shape[1], 120).bfloat16(), torch.randn(2, 5, 60).bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(h.double(), mel.double())
        with use_backend("reference"):
            plain = net(h, mel)
        with use_backend("cpu"):
            got = net(h, mel)
    assert got.dtype == torch.bfloat16
    errors = [(x.double() - expected).square().mean().sqrt() for x in (got, plain)]
    assert errors[0] <= 2 * errors[1]


def test_gradients_in_evaluation() -> None:
    model, twin = (m.double().eval() for m in pair())
    mel, audio = torch.randn(2, 5, 7, dtype=torch.float64), 0.1 * torch.randn(2, 7 * 256, dtype=torch.float64)
    for out in (model((mel, audio)), twin(mel, audio)):
        WaveGlowLoss()(out).backward()
    grads = {name: p.grad for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-8, atol=1e-10, msg=name)


BAD_SIZES = [
    ({"n_audio_channel": 7}, "`n_audio_channel` must be even, since channels are halved; got 7"),
    ({"n_audio_channel": 96}, "`n_audio_channel` must divide the hop, 256; got 96"),
    ({"n_flows": 20}, "`n_audio_channel` must leave at least 2 channels after the early outputs; got -16 of 128"),
    ({"WN_config": {"n_layers": 2, "n_channels": 4, "kernel_size": 5}}, "kernel_size of 3, as published; got 5"),
]


@pytest.mark.parametrize(("sizes", "message"), BAD_SIZES)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, object], message: str) -> None:
    small = {"n_mel_channels": 5, "n_flows": 4, "n_audio_channel": 128, "n_early_every": 2, "n_early_size": 16}
    with pytest.raises(ValueError, match=message):
        SqueezeWave(**({**small, "WN_config": {"n_layers": 2, "n_channels": 4, "kernel_size": 3}} | sizes))


def test_bad_input_is_named() -> None:
    model, _ = pair()
    with pytest.raises(ValueError, match=r"`mel` must be \[B, 5, T\]; got \[1, 4, 3\]"):
        model.infer(torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match=r"`audio` must have the 768 samples that `mel` \[1, 5, 3\] stands for"):
        model((torch.zeros(1, 5, 3), torch.zeros(1, 512)))
