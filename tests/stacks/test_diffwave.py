from __future__ import annotations

import pytest
import torch

from fastflow.stacks import accelerate
from tests.stacks.checks import randomise, replaced_equals_original
from tests.stacks.diffwave_twin import DiffWave, WaveNet


@pytest.mark.parametrize("mels", [5, None])
def test_diffwave_is_the_original(mels: int | None) -> None:
    torch.manual_seed(0)
    model = randomise(DiffWave(mels=mels))
    audio, step = torch.randn(2, 21, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    spec = None if mels is None else torch.randn(2, 5, 21, requires_grad=True)
    inputs = [audio, step, *([] if spec is None else [spec])]
    report = replaced_equals_original(model, lambda: model(audio, step, spec), inputs, 1)
    assert report.entries[0].path == "residual_layers" and report.entries[0].stack == "DiffWave"


def test_the_network_of_diffsinger_is_the_original() -> None:
    torch.manual_seed(0)
    model = randomise(WaveNet())
    spec, step, cond = (torch.randn(shape, requires_grad=True) for shape in ((2, 5, 13), (2, 8), (2, 7, 13)))
    report = replaced_equals_original(model, lambda: model(spec, step, cond), [spec, step, cond], 1)
    assert report.entries[0].stack == "DiffSinger, so-vits-svc"


def test_a_loop_that_does_not_call_the_blocks_is_told_where_they_are() -> None:
    model = randomise(DiffWave()).eval()
    blocks = list(model.residual_layers)
    report = accelerate(model, strict=True)
    (f,) = model.residual_layers
    with pytest.raises(AttributeError, match=r"`requires_grad_`: a list replaced by .* are in its `children\(\)`"):
        f.requires_grad_(False)
    layers = model.residual_layers
    assert list(layers.children()) == [layers[i] for i in range(len(layers))] == list(layers[:]) == blocks
    report.revert()
    assert list(layers) == blocks


def test_torch_compile_has_no_graph_breaks() -> None:
    torch.compiler.reset()
    model = randomise(WaveNet()).eval()
    accelerate(model, strict=True)
    inputs = torch.randn(2, 5, 13), torch.randn(2, 8), torch.randn(2, 7, 13)
    with torch.no_grad():
        expected = model(*inputs)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(*inputs), expected)


def test_the_order_of_the_gate_is_noticed() -> None:
    model = randomise(DiffWave())

    class TanhFirst(DiffWave.ResidualBlock):
        def forward(self, x, diffusion_step, conditioner=None):  # type: ignore[no-untyped-def]
            y = self.dilated_conv(x + self.diffusion_projection(diffusion_step)[:, :, None])
            filtered, gated = (y + self.conditioner_projection(conditioner)).chunk(2, 1)
            residual, skip = self.output_projection(torch.tanh(filtered) * torch.sigmoid(gated)).chunk(2, 1)
            return (x + residual) / 2**0.5, skip

    for layer in model.residual_layers:
        layer.__class__ = TanhFirst
    assert "computes something else" in accelerate(model).left[0].reason


def test_under_autocast_it_is_found_too_and_has_the_originals_dtype_and_error() -> None:
    torch.manual_seed(0)
    model = randomise(DiffWave()).eval()
    inputs = torch.randn(2, 40), torch.randn(2, 6), torch.randn(2, 5, 40)
    with torch.no_grad():
        expected = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            original = model(*inputs)
            accelerate(model, strict=True)
            ours = model(*inputs)
    assert ours.dtype == original.dtype
    assert (ours - expected).norm() <= 2 * (original - expected).norm()


def test_a_few_steps_run_block_by_block() -> None:
    torch.manual_seed(0)
    model = randomise(WaveNet())
    inputs = torch.randn(2, 5, 2), torch.randn(2, 8), torch.randn(2, 7, 2)
    expected = model(*inputs)
    accelerate(model, strict=True)
    assert torch.equal(model(*inputs), expected)


@pytest.mark.parametrize(("mels", "error"), [(5, TypeError), (None, AssertionError)])
def test_with_the_wrong_conditioning_it_fails_as_before(mels: int | None, error: type[Exception]) -> None:
    model = randomise(DiffWave(mels=mels)).eval()
    accelerate(model, strict=True)
    with pytest.raises(error):
        model(torch.randn(1, 20), torch.randn(1, 6), None if mels else torch.randn(1, 5, 20))
