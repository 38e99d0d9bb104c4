"""WaveGlow on a GPU. `make gpu` runs these."""

from __future__ import annotations

import copy

import pytest
import torch

import fastflow
from fastflow.audio import Denoiser
from fastflow.models import GraphedInfer, WaveGlow
from fastflow.models.waveglow import WaveGlowLoss
from fastflow.ops import registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

BACKENDS = ["auto", "reference", "triton", "cuda"]


@pytest.fixture(autouse=True)
def runs_here(request: pytest.FixtureRequest) -> None:
    """A library that was not built is no failure; `fastflow info` says the same."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "cuda":
        status = next(status for status in registry.status() if status.backend == "cuda")
        if not status.can_run:
            pytest.skip(status.reason)


@pytest.fixture(autouse=True)
def exact(no_tf32: None) -> None:
    """In all of them."""


@pytest.fixture(scope="module")
def model() -> WaveGlow:
    """The bundled model, on the CPU."""
    loaded = fastflow.load("waveglow-small")
    assert isinstance(loaded, WaveGlow)
    return loaded


def inputs(model: WaveGlow, frames: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mel = torch.randn(2, model.n_mel_channels, frames) - 5
    return mel, torch.randn(2, model.n_group, frames * model.hop_length // model.n_group)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


@pytest.mark.parametrize("backend", BACKENDS)
def test_infer_gives_the_audio_of_the_cpu(model: WaveGlow, backend: str) -> None:
    mel, z = inputs(model)
    with fastflow.use_backend("reference"):
        want = copy.deepcopy(model).double().infer(mel.double(), 0.6, z=z.double())
    with fastflow.use_backend(backend):
        got = copy.deepcopy(model).cuda().infer(mel.cuda(), 0.6, z=z.cuda())
    assert got.is_cuda and error(got, want) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_weights_err_at_most_twice_as_much_as_the_reference(
    model: WaveGlow, dtype: torch.dtype, backend: str
) -> None:
    mel, z = (t.cuda() for t in inputs(model))
    on_gpu = copy.deepcopy(model).cuda()
    with fastflow.use_backend("reference"):
        want = copy.deepcopy(on_gpu).double().infer(mel.double(), 0.6, z=z.double())
    errors = {}
    for name in ("reference", backend):
        with fastflow.use_backend(name):
            with torch.autocast("cuda", dtype):
                errors[name, "autocast"] = error(on_gpu.infer(mel, 0.6, z=z), want)
            half = copy.deepcopy(on_gpu).to(dtype).infer(mel.to(dtype), 0.6, z=z.to(dtype))
            errors[name, "half"] = error(half, want)
    for way in ("autocast", "half"):
        assert errors[backend, way] <= 2 * errors["reference", way]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_step_has_the_gradients_of_the_cpu(model: WaveGlow, backend: str) -> None:
    mel, _ = inputs(model, 12)
    audio = 0.1 * torch.randn(2, 12 * model.hop_length)
    grads = []
    for name, device, dtype in (("reference", "cpu", torch.float64), (backend, "cuda", torch.float32)):
        trained = copy.deepcopy(model).to(device, dtype).train()
        with fastflow.use_backend(name):
            WaveGlowLoss()(trained((mel.to(device, dtype), audio.to(device, dtype)))).backward()
        grads.append({key: p.grad for key, p in trained.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    scale = max(float(g.abs().max()) for g in grads[0].values())
    for key, want in grads[0].items():
        torch.testing.assert_close(grads[1][key].double().cpu(), want, rtol=1e-3, atol=1e-4 * scale)


def test_a_generator_on_the_device_repeats_and_the_denoiser_runs_there(model: WaveGlow) -> None:
    on_gpu = copy.deepcopy(model).cuda()
    mel = inputs(model)[0].cuda()
    draws = [on_gpu.infer(mel, 0.6, generator=torch.Generator("cuda").manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)
    cleaned = Denoiser(on_gpu)(draws[0], strength=0.01)
    assert cleaned.is_cuda and torch.isfinite(cleaned).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "triton", "cuda"])
def test_infer_as_one_graph_gives_the_same_audio(model: WaveGlow, backend: str, dtype: torch.dtype) -> None:
    on_gpu = copy.deepcopy(model).to("cuda", dtype)
    mel, z = (t.to("cuda", dtype) for t in inputs(model))
    with fastflow.use_backend(backend):
        infer = GraphedInfer(on_gpu, *mel.shape[::2])
        for sigma in (0.6, 1.0):
            assert torch.equal(infer(mel, sigma, z=z), on_gpu.infer(mel, sigma, z=z))
        draws = [run(mel, generator=torch.Generator("cuda").manual_seed(7)) for run in (infer, on_gpu.infer)]
        assert torch.equal(*draws)
        with torch.no_grad():
            on_gpu.WN[0].end.weight.mul_(1.5)
        assert torch.equal(infer(mel, 0.6, z=z), on_gpu.infer(mel, 0.6, z=z))


def test_the_compiled_gate_gives_the_reference_s_numbers() -> None:
    if not registry.status()[3].can_run:
        pytest.skip(registry.status()[3].reason)
    for length in (0, 1, 7, 128, 130, 100003):
        x = 3 * torch.randn(2, 6, length, device="cuda")
        with fastflow.use_backend("cuda"):
            got = fastflow.ops.gate(x)
        with fastflow.use_backend("reference"):
            want = fastflow.ops.gate(x.double())
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
