"""Whole models and single operations as they are benchmarked: weights, inputs, what is right, what it costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow import use_backend
from fastflow.bench.cases import Case, Maker
from fastflow.bench.check import converted, wider
from fastflow.bench.published import PublishedWaveGlow
from fastflow.bench.timing import Run
from fastflow.models import WaveGlow
from fastflow.models.waveglow import CouplingNet
from fastflow.nn import InvertibleConv1x1
from fastflow.ops import checks, registry

SIGMA = 0.6


# Operations


def op_functions(case: Case, backends: Sequence[str], x: Tensor) -> dict[str, Callable[..., Any]]:
    """Return plain PyTorch, "eager", and the operation on each of the backends that can run it on a tensor like `x`."""
    functions = {"eager": registry._implementations["reference"][case.op]}
    for backend in backends:
        if registry._unsupported(backend, case.op, x) is None:
            functions[backend] = registry._implementations[backend][case.op]
    return functions


def op_results(case: Case, arguments: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """Return what the operation gives in plain PyTorch: in a wider dtype, which is what is right, and in its own."""
    reference = registry._implementations["reference"][case.op]
    with checks.no_autocast(device):
        return reference(*converted(arguments, wider(dtype))), reference(*arguments)


def laid_out(values: Any) -> Any:
    """Return what `fastflow.nn` hands to a gated stack: the channels of a step and of a tap beside each other."""
    if isinstance(values, Tensor):
        return values.transpose(1, 2).contiguous().transpose(1, 2) if values.dim() == 3 else values
    if isinstance(values, list | tuple):
        return type(values)(map(laid_out, values))
    return values


def on_backend(backend: str, run: Run) -> Run:
    """Return `run`, on a backend."""

    def on_it(i: int) -> Any:
        with use_backend(backend):
            return run(i)

    return on_it


# WaveGlow


def waveglow(tiny: bool) -> WaveGlow:
    """WaveGlow-256 with random weights; `end` is not zero, as it is before training."""
    torch.manual_seed(0)
    if tiny:
        model = WaveGlow(4, 3, 4, 2, 2, {"n_layers": 2, "n_channels": 8, "kernel_size": 3}, hop_length=8, win_length=16)
    else:
        model = WaveGlow(80, 12, 8, 4, 2, {"n_layers": 8, "n_channels": 256, "kernel_size": 3})
    with torch.no_grad():
        for net in model.WN:
            assert isinstance(net, CouplingNet) and net.end.weight is not None
            torch.nn.init.normal_(net.end.weight, std=0.1 / net.end.weight.shape[1] ** 0.5)
    return model.eval().remove_weightnorm()


def infer_case(model: WaveGlow, name: str, batch: int, frames: int) -> Case:
    """What synthesis costs at least: the published count of its products; weights, mel, noise and audio moved once."""
    steps = frames * model.hop_length // model.n_group
    flops = 2.0 * batch * frames * model.upsample.weight.numel()
    for net in model.WN:
        assert isinstance(net, CouplingNet)
        convs = [*net.in_layers, *net.res_skip_layers, net.cond_layer, net.start, net.end]
        flops += sum(2.0 * batch * steps * math.prod(conv.shape) for conv in convs)
    for convinv in model.convinv:
        assert isinstance(convinv, InvertibleConv1x1)
        flops += 2.0 * batch * steps * convinv.channels**2
    elements = sum(p.numel() for p in model.parameters()) + batch * frames * (
        model.n_mel_channels + 2 * model.hop_length
    )
    return Case(name, "infer", lambda m: (), flops, elements)


class Synthesis(NamedTuple):
    """WaveGlow from mel and noise to audio."""

    case: Case
    samples: int
    model: WaveGlow
    published: PublishedWaveGlow
    sets: list[tuple[Tensor, ...]]  # mel and unit noise

    def ours(self, i: int) -> Tensor:
        mel, z = self.sets[i]
        return self.model.infer(mel, SIGMA, z=z)

    def eager(self, i: int) -> Tensor:
        result: Tensor = self.published(*self.sets[i], SIGMA)
        return result

    def results(self) -> tuple[Tensor, Tensor]:
        """Return what is right, from a wider dtype, and plain PyTorch's audio in this one, of the first inputs."""
        dtype = self.sets[0][0].dtype
        # of the rounded weights, so that their rounding is in nobody's error
        wide = PublishedWaveGlow(copy.deepcopy(self.model).to(wider(dtype))).to(self.sets[0][0].device)
        expected: Tensor = wide(*converted(self.sets[0], wider(dtype)), SIGMA)
        return expected, self.eager(0)


def synthesis(
    frames: int, batch: int, dtype: torch.dtype, device: torch.device, sets: int, tiny: bool = False
) -> Synthesis:
    model = waveglow(tiny).to(device, dtype)
    name = f"{'toy WaveGlow' if tiny else 'WaveGlow-256'}, {frames} frames, batch {batch}"
    m = Maker(dtype, device)
    shapes = (
        (batch, model.n_mel_channels, frames),
        (batch, model.n_group, frames * model.hop_length // model.n_group),
    )
    return Synthesis(
        infer_case(model, name, batch, frames),
        batch * frames * model.hop_length,
        model,
        PublishedWaveGlow(model).to(device),
        [tuple(m.randn(*shape) for shape in shapes) for _ in range(sets)],
    )
