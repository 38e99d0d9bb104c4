"""What surrounds the CUDA graph, with a stand-in for the graph itself; the GPU's own test is beside this file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastflow.models import GraphedInfer, WaveGlow, graphed


@pytest.fixture
def model() -> WaveGlow:
    torch.manual_seed(0)
    made = WaveGlow(4, 4, 8, 2, 2, {"n_layers": 2, "n_channels": 8, "kernel_size": 3}, hop_length=16, win_length=64)
    for p in made.parameters():  # `end` starts at zero: give every coupling something to do
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return made.eval()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Replay by running again, into the same memory. Returns the devices for which something was captured."""
    devices = []

    def record(run: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
        devices.append(device)
        out = run().fill_(float("nan"))
        return lambda: out.copy_(run()), out

    monkeypatch.setattr(graphed, "record", record)
    return devices


def test_it_gives_what_infer_gives(model: WaveGlow, captures: list[torch.device]) -> None:
    infer = GraphedInfer(model, 2, 5)
    earlier = []
    for sigma in (0.6, 1.0):
        mel, z = torch.randn(2, 4, 5), torch.randn(2, 8, 10)
        got = infer(mel, sigma, z=z)
        assert torch.equal(got, model.infer(mel, sigma, z=z)) and not got.requires_grad
        drawn = infer(mel, sigma, generator=torch.Generator().manual_seed(3))
        assert torch.equal(drawn, model.infer(mel, sigma, generator=torch.Generator().manual_seed(3)))
        earlier.append((got, got.clone()))
    assert all(torch.equal(*pair) for pair in earlier)  # a result is the caller's own
    assert captures == [torch.device("cpu")]


def test_default_draws_are_those_of_infer(model: WaveGlow, captures: list[torch.device]) -> None:
    infer, mel = GraphedInfer(model, 1, 5), torch.randn(1, 4, 5)
    torch.manual_seed(5)
    want = model.infer(mel)
    torch.manual_seed(5)
    assert torch.equal(infer(mel), want)


@pytest.mark.parametrize("change", ["in place", "another tensor", "dtype", "another parameter"])
def test_changed_weights_are_captured_again(model: WaveGlow, captures: list[torch.device], change: str) -> None:
    infer = GraphedInfer(model, 1, 5)
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 10)
    before = infer(mel, z=z)
    with torch.no_grad():
        end = model.WN[1].end
        if change == "in place":
            end.weight.mul_(2)
        elif change == "another tensor":
            end.weight.data = end.weight.data * 2
        elif change == "another parameter":
            end.weight = torch.nn.Parameter(end.weight * 2)
        else:
            model.double()
            mel, z = mel.double(), z.double()
    after = infer(mel, z=z)
    assert torch.equal(after, model.infer(mel, z=z)) and after.dtype == mel.dtype
    assert change == "dtype" or not torch.equal(after, before)
    assert torch.equal(infer(mel, z=z), after) and len(captures) == 2


def test_inference_mode_and_autocast_do_not_reach_inside(model: WaveGlow, captures: list[torch.device]) -> None:
    mel, z = torch.randn(1, 4, 5), torch.randn(1, 8, 10)
    want = model.infer(mel, z=z)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        infer = GraphedInfer(model, 1, 5)
    assert torch.equal(infer(mel, z=z), want)


def test_bad_models_and_sizes_are_named(model: WaveGlow) -> None:
    with pytest.raises(ValueError, match="`model` must be on a CUDA device, since a CUDA graph is captured; got cpu"):
        GraphedInfer(model, 1, 5)
    with pytest.raises(TypeError, match="`model` must be a WaveGlow; got Linear"):
        GraphedInfer(torch.nn.Linear(2, 2), 1, 5)  # type: ignore[arg-type]
    for batch, frames, name in ((0, 5, "batch"), (1, 0, "frames")):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
            GraphedInfer(model, batch, frames)


def test_bad_arguments_are_named(model: WaveGlow, captures: list[torch.device]) -> None:
    infer = GraphedInfer(model, 2, 5)
    mel = torch.zeros(2, 4, 5)
    sizes = r"`mel` must be \[batch, n_mel_channels, frames\] of this graph, here \[2, 4, 5\]; got \[2, 4, 6\]"
    with pytest.raises(ValueError, match=sizes):
        infer(torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="`mel` must have the model's dtype"):
        infer(mel.double())
    with pytest.raises(ValueError, match="`sigma` must be a finite number >= 0; got -1"):
        infer(mel, -1)
    with pytest.raises(ValueError, match=r"`z` must be .*, here \[2, 8, 10\]; got \[2, 8, 9\]"):
        infer(mel, z=torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match="`generator` must be None where `z` is given"):
        infer(mel, z=torch.zeros(2, 8, 10), generator=torch.Generator())


def test_after_a_capture_that_failed_the_next_call_captures_again(
    model: WaveGlow, captures: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    infer, mel, z = GraphedInfer(model, 1, 5), torch.randn(1, 4, 5), torch.randn(1, 8, 10)
    record = graphed.record
    with torch.no_grad():
        model.WN[0].end.weight.mul_(1.5)

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(graphed, "record", fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            infer(mel, z=z)
    monkeypatch.setattr(graphed, "record", record)
    assert torch.equal(infer(mel, z=z), model.infer(mel, z=z))
