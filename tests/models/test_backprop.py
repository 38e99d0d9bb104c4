"""The three ways of a flow's backward: one result, and less memory from one to the next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastflow import use_backend
from fastflow.models import FloWaveNet, SqueezeWave, WaveGlow, WaveGlowLoss
from fastflow.nn import backprop
from fastflow.nn.backprop import BACKPROPS, FlowModel, ReconstructionError, Step
from fastflow.ops import registry

BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])
LESS = ("recompute", "invert")


class Problem:
    """A small model, and its loss on a batch."""

    def __init__(self, model: Any, mel: Tensor, audio: Tensor) -> None:
        self.model, self.mel, self.audio = model, mel, audio
        with torch.no_grad():
            for name, p in model.named_parameters():  # what starts at zero or one: give it something to do
                if not p.any() or name.endswith(".actnorm.scale"):
                    p.add_(0.1 * torch.randn_like(p))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.mel, self.audio

    def loss(self) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        mel, audio = self.mel.to(dtype), self.audio.to(dtype)
        if isinstance(self.model, FloWaveNet):
            log_p, log_det = self.model(audio[:, None], mel)
            return -(log_p + log_det)
        return WaveGlowLoss()(self.model((mel, audio)))

    def gradients(self, way: str, loss: Callable[[], Tensor] | None = None) -> dict[str, Tensor]:
        self.model.backprop = way
        self.model.zero_grad()
        (loss or self.loss)().backward()
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


def waveglow(batch: int = 2, flows: int = 4, **options: Any) -> Problem:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
    model = WaveGlow(4, flows, 8, 2, 2, sizes, hop_length=16, win_length=32, **options)
    return Problem(model, torch.randn(batch, 4, 6), 0.1 * torch.randn(batch, 96))


def flowavenet(batch: int = 2, **options: Any) -> Problem:
    torch.manual_seed(0)
    sizes = {"n_block": 3, "n_flow": 2, "n_layer": 2, "block_per_split": 2, "filter_size": 8, "pretrained": True}
    model = FloWaveNet(1, 4, **(sizes | options))
    return Problem(model, torch.randn(batch, 4, 1), 0.3 * torch.randn(batch, 256))


def squeezewave(batch: int = 2) -> Problem:
    torch.manual_seed(0)
    model = SqueezeWave(5, 4, 128, 2, 16, {"n_layers": 2, "n_channels": 12, "kernel_size": 3})
    return Problem(model, torch.randn(batch, 5, 7), 0.1 * torch.randn(batch, 7 * 256))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "waveglow": waveglow,
    "waveglow, alternating": lambda batch: waveglow(batch, alternate_halves=True),
    "flowavenet": flowavenet,
    "flowavenet, additive": lambda batch: flowavenet(batch, affine=False, block_per_split=1),
    "squeezewave": squeezewave,
}


def rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()


def off(got: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """How far gradients are off, each relative to its size, over all of them."""
    return rms(torch.stack([rms(g - expected[name]) / rms(expected[name]) for name, g in got.items()]))


def check(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The bounds of a float32 operation, for a gradient of size one."""
    assert got.keys() == expected.keys()
    for name, g in got.items():
        assert rms(g - expected[name]) <= 1e-4 * rms(expected[name]) + 1e-5 * rms(expected[name]).clamp(max=1), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_those_of_autograd_in_float64(name: str, batch: int, backend: str) -> None:
    problem = PROBLEMS[name](batch)
    wide = PROBLEMS[name](batch)
    wide.model.double()
    with use_backend("reference"):
        expected = wide.gradients("autograd")
        for way in LESS:  # to far more than float32 holds, so that it is the same formula
            for key, g in wide.gradients(way).items():
                torch.testing.assert_close(g, expected[key], rtol=1e-7, atol=1e-9)
    with use_backend(backend):
        for way in BACKPROPS:
            check(problem.gradients(way), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["waveglow", "flowavenet"])
def test_gradients_under_autocast(name: str, backend: str) -> None:
    problem = PROBLEMS[name](3)

    def narrow() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return problem.loss()

    with use_backend("reference"):
        expected = problem.gradients("autograd")
        plain = problem.gradients("autograd", narrow)
    with use_backend(backend):
        for way in BACKPROPS:
            got = problem.gradients(way, narrow)
            assert got.keys() == expected.keys()
            assert all(g.dtype == torch.float32 for g in got.values())
            assert off(got, expected) <= 2 * off(plain, expected), way


@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize(
    "learned", ["WN.1.", "convinv.2.", "WN.3.end", "upsample", "WN.0.start", "convinv.0.", "WN.2.cond_layer.weight_g"]
)
def test_frozen_parameters_get_no_gradient_and_cost_none(learned: str, way: str) -> None:
    problem = waveglow()
    for name, p in problem.model.named_parameters():
        p.requires_grad_(name.startswith(learned))
    expected = problem.gradients("autograd")
    assert expected and all(name.startswith(learned) for name in expected)
    check(problem.gradients(way), expected)


@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize("make", [waveglow, flowavenet])
def test_gradient_of_the_mel_alone(make: Callable[[], Problem], way: str) -> None:
    """It is a sum over the flows, each of which is conditioned."""
    problem = make()
    problem.model.requires_grad_(False)
    grads = {}
    for each in ("autograd", way):
        problem.mel = problem.mel.detach().requires_grad_()
        problem.gradients(each)
        grads[each] = problem.mel.grad
    assert grads["autograd"] is not None and grads[way] is not None
    torch.testing.assert_close(grads[way], grads["autograd"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", LESS)
def test_gradients_accumulate_and_a_graph_can_be_used_twice(way: str) -> None:
    problem = waveglow()
    once = {name: 2 * g for name, g in problem.gradients("autograd").items()}
    problem.gradients(way)
    problem.loss().backward()
    check({name: p.grad for name, p in problem.model.named_parameters()}, once)
    problem.model.zero_grad()
    loss = problem.loss()
    loss.backward(retain_graph=True)
    loss.backward()
    check({name: p.grad for name, p in problem.model.named_parameters()}, once)


@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize("part", ["z", "early", "log_s 1", "log_s 3"])
def test_gradients_of_a_part_of_the_outputs(part: str, way: str) -> None:
    """Where the last flows are not gone back through, their inputs come from inverting them alone."""
    problem = waveglow()

    def loss() -> Tensor:
        z, log_s, _ = problem.model((problem.mel, problem.audio))
        parts = {"z": z[:, 4:], "early": z[:, :2], "log_s 1": log_s[1], "log_s 3": log_s[3]}
        return parts[part].square().sum()

    check(problem.gradients(way, loss), problem.gradients("autograd", loss))


def kept(problem: Problem, way: str) -> int:
    """Bytes that autograd keeps after a forward, besides parameters and inputs."""
    problem.model.backprop = way
    others = {t.untyped_storage().data_ptr() for t in (*problem.model.parameters(), *problem.inputs)}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = problem.loss()
    assert loss.requires_grad
    return sum(size for place, size in sizes.items() if place not in others)


def long_waveglow(flows: int) -> Problem:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_channels": 16, "kernel_size": 3}
    model = WaveGlow(4, flows, 8, 100, 2, sizes, hop_length=16, win_length=32)
    return Problem(model, torch.randn(1, 4, 1024), 0.1 * torch.randn(1, 16 * 1024))


def test_memory_by_the_number_of_flows() -> None:
    x = 16 * 1024 * 4  # bytes of a flow's input
    sizes = {way: [kept(long_waveglow(flows), way) for flows in (2, 6)] for way in BACKPROPS}
    growth = {way: (more - few) / 4 for way, (few, more) in sizes.items()}
    assert growth["autograd"] > 3 * x  # the network's input and output, and its weights
    assert x <= growth["recompute"] < 1.1 * x
    assert growth["invert"] < 0.1 * x  # samples


@pytest.mark.parametrize("way", LESS)
def test_no_folded_weights_stay_behind(way: str) -> None:
    problem = waveglow()
    problem.gradients(way)
    modules = [module for module in problem.model.WN.modules() if hasattr(module, "_packed")]
    assert modules and all(module._packed._cached is None for module in modules)


def test_what_drifts_is_refused_and_the_flow_is_named() -> None:
    problem = waveglow()
    weight = problem.model.convinv[2].conv.weight
    with torch.no_grad():  # condition number 1e5: float32 keeps two digits
        u, s, v = torch.linalg.svd(weight[:, :, 0])
        s[-1] = 1e-5
        weight.copy_((u * s @ v)[:, :, None])
    check(problem.gradients("recompute"), problem.gradients("autograd"))
    with pytest.raises(ReconstructionError, match=r"the input of flow 1 of 4 .* error of [0-9.e-]+ .*bound of 2.*e-05"):
        problem.gradients("invert")
    assert all(p.grad is None for name, p in problem.model.named_parameters() if name.startswith("WN.1."))


def test_how_near_a_refusal_the_last_backward_came_is_known() -> None:
    problem = waveglow()
    assert problem.model.reconstruction_error == 0
    problem.gradients("invert")
    near = problem.model.reconstruction_error
    assert 0 < near < 0.1
    problem.gradients("autograd")
    assert problem.model.reconstruction_error == near
    with torch.no_grad():  # condition number 30
        weight = problem.model.convinv[2].conv.weight
        u, s, v = torch.linalg.svd(weight[:, :, 0])
        s[-1] = 1 / 30
        weight.copy_((u * s @ v)[:, :, None])
    problem.gradients("invert")
    assert near < problem.model.reconstruction_error < 1
    problem.gradients("recompute")
    assert problem.model.reconstruction_error == 0


def test_a_few_values_far_off_are_noticed_between_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = long_waveglow(2)
    inverse = type(problem.model)._couple

    def wrong(self: Any, *args: Any, **options: Any) -> Any:
        y, log_det = inverse(self, *args, **options)
        if options.get("reverse"):
            y[0, 5, 7] += 3.0
        return y, log_det

    monkeypatch.setattr(type(problem.model), "_couple", wrong)
    with pytest.raises(ReconstructionError, match="flow 1 of 2"):
        problem.gradients("invert")


def test_what_was_not_finite_is_no_drift() -> None:
    """The loss tells of it; a training loop skips the step."""
    problem = waveglow()
    problem.audio[0, 5] = float("nan")
    assert problem.gradients("invert")["upsample.weight"].isnan().any()


@pytest.mark.parametrize("way", LESS)
def test_second_derivatives_are_refused(way: str) -> None:
    problem = waveglow()
    problem.model.backprop = way
    with pytest.raises(RuntimeError, match="`create_graph` must be False where `backprop` is"):
        torch.autograd.grad(problem.loss(), list(problem.model.parameters()), create_graph=True, allow_unused=True)


@pytest.mark.parametrize("way", LESS)
def test_compiled_models_take_the_same_way(way: str) -> None:
    problem = waveglow(flows=2)
    expected = problem.gradients("autograd")
    problem.model.forward = torch.compile(problem.model.forward, backend="eager")
    check(problem.gradients(way), expected)


@pytest.mark.parametrize("way", LESS)
def test_replicas_of_data_parallel_are_refused(way: str) -> None:
    problem = waveglow()
    problem.model.WN[0]._is_replica = True
    with pytest.raises(RuntimeError, match="`backprop` must be 'autograd' under DataParallel"):
        problem.gradients(way)


@pytest.mark.parametrize("way", LESS)
def test_batch_normalisation_counts_each_batch_once(way: str) -> None:
    problem, plain = squeezewave(), squeezewave()
    check(problem.gradients(way), plain.gradients("autograd"))
    for (name, got), (_, expected) in zip(problem.model.named_buffers(), plain.model.named_buffers(), strict=True):
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("way", LESS)
def test_actnorm_takes_its_start_in_the_first_forward(way: str) -> None:
    problem, plain = flowavenet(pretrained=False), flowavenet(pretrained=False)
    check(problem.gradients(way), plain.gradients("autograd"))
    assert all(flow.actnorm.initialized for block in problem.model.blocks for flow in block.flows)


def test_weights_that_changed_since_the_forward_are_an_error() -> None:
    problem = waveglow(backprop="recompute")
    loss = problem.loss()
    with torch.no_grad():
        problem.model.WN[1].start.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_switch() -> None:
    problem = waveglow(backprop="invert")
    model = problem.model
    assert model.backprop == "invert" and copy.deepcopy(model).backprop == "invert"
    assert "backprop" not in model.config
    assert waveglow().model.backprop == "autograd"
    assert flowavenet(backprop="recompute").model.backprop == "recompute"
    with pytest.raises(ValueError, match="`backprop` must be one of autograd, recompute, invert; got 'revert'"):
        model.backprop = "revert"
    with pytest.raises(ValueError, match="`backprop` must be one of"):
        SqueezeWave(5, 2, 128, 2, 16, {"n_layers": 1, "n_channels": 4, "kernel_size": 3}, backprop="less")
    with torch.no_grad():
        assert not problem.loss().requires_grad


class Dropping(Step):
    """An additive coupling whose network drops out."""

    def __init__(self, k: int) -> None:
        self.name, self.net = f"step {k}", nn.Sequential(nn.Conv1d(2, 2, 1), nn.Dropout(0.5))
        self.parts = [self.net]

    def kept(self, z: Tensor) -> Tensor:
        return z[:, :2]

    def network(self, kept: Tensor, *conds: Tensor) -> Tensor:
        out: Tensor = self.net(kept) + conds[0]
        return out

    def leave(self, z: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((z[:, 2:] + hidden, z[:, :2]), 1), z.new_zeros(z.shape[0])

    def kept_of(self, y: Tensor) -> Tensor:
        return y[:, 2:]

    def inverse(self, y: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat((y[:, 2:], y[:, :2] - hidden), 1)


@pytest.mark.parametrize("way", LESS)
def test_what_a_network_draws_is_drawn_again(way: str) -> None:
    torch.manual_seed(0)
    steps, model = [Dropping(k) for k in range(3)], FlowModel()
    x, cond = torch.randn(2, 4, 50), torch.randn(2, 2, 50)
    found = []
    for each in ("autograd", way):
        model.backprop = each
        torch.manual_seed(1)
        (z,), _ = model.run_steps(steps, x, [cond])
        z.square().sum().backward()
        grads = [p.grad for step in steps for p in step.net.parameters()]
        found.append([z.detach(), *grads, torch.rand(3)])  # the backward leaves the generator where it was
        for step in steps:
            step.net.zero_grad()
    for got, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("way", LESS)
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_distributed_data_parallel(way: str, options: dict[str, bool]) -> None:
    """Each gradient is reduced, once: the reducer would raise in the second step, or count it in twice."""
    problem = waveglow(backprop=way)
    expected = problem.gradients("autograd")
    problem.model.backprop = way
    parallel = nn.parallel.DistributedDataParallel(problem.model, **options)
    for _ in range(3):
        parallel.zero_grad()
        WaveGlowLoss()(parallel((problem.mel, problem.audio))).backward()
        check({name: p.grad for name, p in problem.model.named_parameters()}, expected)


def test_saved_samples_are_few() -> None:
    assert backprop._sample(torch.randn(2, 8, 2000)).numel() <= 2 * 8 * 2 * backprop.SAMPLED + 1
    assert backprop._sample(torch.randn(2, 8, 1)).numel() == 17
