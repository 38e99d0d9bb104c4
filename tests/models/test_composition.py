"""The upsampler composed with the weights of the conditioning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastflow import use_backend
from fastflow.models import SqueezeWave, WaveGlow, waveglow
from fastflow.models.upsample import Upsample
from fastflow.ops import registry
from tests import golden
from tests.models.test_waveglow import published

pytestmark = pytest.mark.skipif(not registry.status()[1].can_run, reason=registry.status()[1].reason)


@pytest.mark.parametrize(("win", "hop", "n_group"), [(1024, 256, 8), (24, 8, 8), (20, 8, 2), (10, 8, 1), (5, 1, 1)])
def test_composed_weights_make_of_windows_what_weights_make_of_the_upsampled(win: int, hop: int, n_group: int) -> None:
    upsample, frames = Upsample(3, win, hop, n_group).double(), 5
    mel = torch.randn(2, 3, frames, dtype=torch.float64)
    weights = [torch.randn(4, 3 * n_group, dtype=torch.float64) for _ in range(2)]
    biases = [torch.randn(4, dtype=torch.float64) for _ in range(2)]
    steps = upsample.steps_per_frame
    up = upsample.grouped(mel, frames * steps, channels_last=False)
    windows = upsample.windows(mel, channels_last=False)
    buffer = [torch.empty(steps, 4, windows.shape[1], dtype=torch.float64) for _ in range(2)]
    for out in (None, buffer):
        composed, composed_biases = upsample.compose(weights, biases, out)
        for weight, bias, phases, added in zip(weights, biases, composed, composed_biases, strict=True):
            got = torch.einsum("poc,bcf->bofp", phases, windows).flatten(2) + added[:, None]
            torch.testing.assert_close(got, weight @ up + bias[:, None])
    assert all(a is b for a, b in zip(composed, buffer, strict=True))
    assert torch.equal(upsample.windows(mel, channels_last=True), windows)
    assert upsample.windows(mel[:, :, :0], channels_last=False).shape == (2, windows.shape[1], 0)


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose for the shortest mels too."""
    monkeypatch.setattr(waveglow, "SHORTEST_COMPOSED", {"cpu": 0})


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For every composition, how many layers it was of."""
    done: list[int] = []
    compose = Upsample.compose

    def counted(self: Upsample, weights: list[Tensor], *rest: object) -> object:
        done.append(len(weights))
        return compose(self, weights, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Upsample, "compose", counted)
    return done


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("case", ["waveglow_tiny", "waveglow_old"])
def test_golden_inference_with_composed_weights(case: str, compositions: list[int]) -> None:
    model = published(case)
    model.compose_conditioning("kept")
    with use_backend("cpu"):
        assert golden.audio_error(model, case) <= 1e-4
        assert len(compositions) == model.n_flows
        assert golden.audio_error(model, case) <= 1e-4
    assert len(compositions) == model.n_flows, "once for all calls"


def small(n_mel_channels: int = 6, **options: object) -> WaveGlow:
    """Two frames condition a step, so that composing halves what it is conditioned by."""
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
    model = WaveGlow(n_mel_channels, 4, 8, 2, 2, sizes, **({"hop_length": 64, "win_length": 256} | options))  # type: ignore[arg-type]
    for p in model.parameters():  # `end` starts at zero: give every coupling something to do
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def test_auto_composes_where_it_saves_more_than_it_takes(compositions: list[int]) -> None:
    model = small()
    assert model._inputs_saved() == 6 * (8 - 4)
    pays = 48 * 24 // 24  # frames times batch
    with use_backend("cpu"):
        for batch, frames, composed in ((1, pays, 0), (1, pays + 1, 4), (2, pays // 2 + 1, 0), (2, pays, 4)):
            mel, z = torch.randn(batch, 6, frames), torch.randn(batch, 8, frames * 8)
            del compositions[:]
            model.compose_conditioning("auto")
            got = model.infer(mel, 0.6, z=z)
            assert len(compositions) == (composed if frames >= waveglow.SHORTEST_COMPOSED["cpu"] else 0)
            model.compose_conditioning("off")
            torch.testing.assert_close(got, model.infer(mel, 0.6, z=z), rtol=1e-4, atol=1e-4)
            assert len(compositions) in (0, composed)


def test_what_pays_for_the_published_sizes() -> None:
    with torch.device("meta"):
        model = WaveGlow(**golden.config("waveglow_256"))
    with use_backend("cpu"):
        assert [model._composes(torch.empty(1, 80, frames)) for frames in (31, 80, 640, 641)] == [False] * 3 + [True]
        assert model._composes(torch.empty(9, 80, 80))
        model.compose_conditioning("kept")
        assert [model._composes(torch.empty(1, 80, frames)) for frames in (31, 32, 641)] == [False, True, True]
        with torch.autocast("cpu", torch.bfloat16):
            assert not model._composes(torch.empty(1, 80, 641))
    with use_backend("reference"):
        assert not model._composes(torch.empty(1, 80, 641))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.WN[1].cond_layer.weight_g.mul_(1.5),
        lambda m: m.upsample.bias.add_(1.0),
        lambda m: m.WN[0].in_layers[0].bias.add_(1.0),
    ],
)
@torch.no_grad()
def test_kept_weights_follow_the_parameters(change: Callable[[WaveGlow], object], compositions: list[int]) -> None:
    model, mel, z = small(), torch.randn(1, 6, 40), torch.randn(1, 8, 320)
    with use_backend("cpu"):
        model.compose_conditioning("kept")
        before = model.infer(mel, 0.6, z=z)
        change(model)
        after = model.infer(mel, 0.6, z=z)
        assert not torch.equal(after, before) and len(compositions) > 4
        model.compose_conditioning("off")
        torch.testing.assert_close(after, model.infer(mel, 0.6, z=z), rtol=1e-4, atol=1e-4)


def test_kept_weights_go_with_the_mode_the_dtype_and_copies() -> None:
    model, mel = small(), torch.randn(1, 6, 40)

    def kept(of: WaveGlow) -> list[bool]:
        return [net._composed._cached is not None for net in of.WN]  # type: ignore[union-attr]

    with use_backend("cpu"):
        model.compose_conditioning("kept")
        for drop in (
            lambda: model.compose_conditioning("auto"),
            lambda: model.train().eval(),
            lambda: model.double().float(),
        ):
            model.compose_conditioning("kept")
            model.infer(mel)
            assert all(kept(model)) and not any(kept(copy.deepcopy(model)))
            drop()
            assert not any(kept(model))
        assert copy.deepcopy(model).composition == "kept"


def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch() -> None:
    model, mel, z = small().bfloat16(), torch.randn(1, 6, 40).bfloat16(), torch.randn(1, 8, 320).bfloat16()
    with use_backend("reference"):
        plain = model.infer(mel, 0.6, z=z).double()
        expected = copy.deepcopy(model).double().infer(mel.double(), 0.6, z=z.double())
    model.compose_conditioning("kept")
    with use_backend("cpu"):
        got = model.infer(mel, 0.6, z=z)
    assert got.dtype == torch.bfloat16
    assert (got - expected).square().mean() <= 4 * (plain - expected).square().mean()


def test_training_is_not_composed(compositions: list[int]) -> None:
    model = small()
    model.compose_conditioning("kept")
    with use_backend("cpu"):
        model((torch.randn(1, 6, 40), torch.randn(1, 40 * 64)))
    assert not compositions


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="`when` must be one of auto, kept, off; got 'always'"):
        small().compose_conditioning("always")
    sizes = {"n_layers": 1, "n_channels": 8, "kernel_size": 3}
    for model in (small(conditioning="group"), SqueezeWave(4, 2, 128, 2, 16, sizes)):
        model.compose_conditioning("off")
        with pytest.raises(ValueError, match="for a model where composing saves nothing; got 'kept'"):
            model.compose_conditioning("kept")
