"""Where the backward of a flow gets its activations: kept by autograd, or computed again from inputs or outputs.

A flow is a chain of steps, each of them invertible, and nearly all memory of its training is inside the networks of
these steps. Gomez et al. 2017, "The Reversible Residual Network", keep no activations but the chain's last output, and
get each step's input from its output on the way back; Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost", keep the inputs of parts and compute the rest again. A coupling step leaves its network's input as it is, so
here both ways run the network once more, and once only: its result serves the inversion and the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from fastflow.nn import packing
from fastflow.nn.shapes import as_steps
from fastflow.ops.checks import autocast_is_on
from fastflow.ops.wn.api import running_once

BACKPROPS = ("autograd", "recompute", "invert")
RTOL, ATOL = 1e-4, 1e-5  # what an inverted step's input may differ by: the bounds of a float32 operation
SAMPLED = 32  # steps of each input, over batch and time, that are kept to compare with


class ReconstructionError(RuntimeError):
    """A step's input cannot be had back from its output as exactly as its gradients need."""


class Step:
    """One step of a flow, x [B, C, T] -> y [B, C', T'], in three parts: `enter`, `network`, `leave`.

    For images, [B, C, H, W] -> [B, C', H', W'].

    The network, which takes nearly all of the time and the memory, sees only a part of z, `kept`, that `leave` does not
    change or changes in a way that needs no network to undo. All three are functions of their arguments and of what
    `parts` hold, which they do not change, but for what batch normalisation counts and where actnorm starts.

    Attributes:
        name: what an error calls the step.
        parts: the modules whose parameters and buffers are read.
        conds: which of the chain's conditioning tensors the network takes.
        leaving: how many of the first channels of y are not the next step's input, but outputs of the chain.
    """

    name: str
    parts: Sequence[nn.Module]
    conds: Sequence[int] = (0,)
    leaving: int = 0

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return z, and the log-determinant [B] of this part or None for zero."""
        return x, None

    def kept(self, z: Tensor) -> Tensor:
        """Return the part of z that the network sees."""
        raise NotImplementedError

    def network(self, kept: Tensor, *conds: Tensor) -> Any:
        """Return what `leave` needs to know: a tensor, or several."""
        raise NotImplementedError

    def leave(self, z: Tensor, hidden: Any) -> tuple[Tensor, Tensor]:
        """Return y and the log-determinant [B] of this part."""
        raise NotImplementedError

    def kept_of(self, y: Tensor) -> Tensor:
        """Return from y what `kept` returned."""
        raise NotImplementedError

    def inverse(self, y: Tensor, hidden: Any) -> Tensor:
        """Return x."""
        raise NotImplementedError

    def forward(self, x: Tensor, conds: Sequence[Tensor]) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the channels that leave, if any, those that go on, and the step's log-determinant [B]."""
        z, before = self.enter(x)
        y, log_det = self.leave(z, self.network(self.kept(z), *conds))
        left, rest = (y[:, : self.leaving], y[:, self.leaving :]) if self.leaving else (None, y)
        return left, rest, log_det if before is None else before + log_det

    def conds_of(self, conds: Sequence[Tensor]) -> list[Tensor]:
        return [conds[i] for i in self.conds]


class FlowModel(nn.Module):
    """A model with a chain of steps, and the switch that says how its backward gets their activations.

    `backprop` may be changed between one call and the next:

    - "autograd": as PyTorch does it. Fastest, and memory grows with the number of flows by what the networks' inputs,
      outputs and folded weights take.
    - "recompute": a step's input is kept, of as many channels as the flow has, and the backward runs its network again.
    - "invert": only the chain's outputs are kept; the input of a step is computed from its output. Activation memory is
      the same for any number of flows. The backward compares samples of each input with what the forward saw, and
      raises `ReconstructionError` where they differ by more than the bounds of a float32 operation, or than the
      rounding of the networks' dtype where autocast narrows it. `reconstruction_error` says how near it came to that:
      the largest difference over its bound, 0 to 1, in the last backward.

    All three compute the same gradients up to rounding. The last two work with the caller's autocast and random state,
    with parameters that are frozen, and under DistributedDataParallel; not with second derivatives, DataParallel or
    parameters that FSDP has sharded, and torch.compile leaves them as they are.
    """

    _backprop = "autograd"
    reconstruction_error = 0.0

    @property
    def backprop(self) -> str:
        """One of "autograd", "recompute" and "invert"; setting anything else is a ValueError."""
        return self._backprop

    @backprop.setter
    def backprop(self, value: str) -> None:
        if value not in BACKPROPS:
            raise ValueError(f"`backprop` must be one of {', '.join(BACKPROPS)}; got {value!r}")
        self._backprop = value

    def run_steps(self, steps: Sequence[Step], x: Tensor, conds: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run a chain on x [B, C, T] or [B, C, H, W], by the way that `backprop` names.

        Returns:
            The channels that leave, one tensor for each step that has some, and what the last step returns; and the
            log-determinants, [B] for each step.
        """
        if self.backprop == "autograd" or not torch.is_grad_enabled():
            return _run(steps, x, lambda k, x: steps[k].forward(x, steps[k].conds_of(conds)))
        if any(getattr(part, "_is_replica", False) for step in steps for part in step.parts):
            raise RuntimeError(
                f"`backprop` must be 'autograd' under DataParallel, whose replicas have no parameters; got "
                f"{self.backprop!r}. DistributedDataParallel works with all"
            )
        out: tuple[list[Tensor], list[Tensor]] = _uncompiled(self, steps, x, conds)
        return out


def _run(
    steps: Sequence[Step], x: Tensor, forward: Callable[[int, Tensor], tuple[Tensor | None, Tensor, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a chain; `forward` of a step's number and input returns what leaves, the next input, the log-determinant."""
    out, log_dets = [], []
    for k in range(len(steps)):
        left, x, log_det = forward(k, x)
        log_dets.append(log_det)
        if left is not None:
            out.append(left)
    return [*out, x], log_dets


def _remember_less(
    model: FlowModel, steps: Sequence[Step], x: Tensor, conds: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    chain = _Chain(model, steps, [cond.detach() for cond in conds], _Autocast.of(x.device))
    model.reconstruction_error = 0.0

    def forward(k: int, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        named = _Parts(steps[k].parts).named_parameters()
        learned = {name: p for name, p in named if p.requires_grad}
        own = steps[k].conds_of(conds)
        *left, rest, log_det = _RunAgain.apply(chain, k, list(learned), x, *own, *learned.values())  # type: ignore
        return left[0] if left else None, rest, log_det

    out, log_dets = _run(steps, x, forward)
    if chain.invert:
        chain.last = out[-1].detach()
    return out, log_dets


_uncompiled = torch.compiler.disable(_remember_less)  # type: ignore[no-untyped-call]


class _Autocast(NamedTuple):
    """The caller's autocast. Its cache of narrowed weights stays off: it would keep them, and without their graph."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device) -> _Autocast | None:
        if not torch.amp.is_autocast_available(device.type):
            return None
        return cls(device.type, autocast_is_on(device), torch.get_autocast_dtype(device.type))


@contextmanager
def _as_forward(autocast: _Autocast | None) -> Iterator[None]:
    with packing.nothing_kept():
        if autocast is None:
            yield
        else:
            with torch.autocast(autocast.device_type, autocast.dtype, autocast.enabled, cache_enabled=False):
                yield


class _RandomState(NamedTuple):
    """The state of the default generators: the CPU's, and that of the device of `x`."""

    cpu: Tensor
    devices: Sequence[int]
    states: Sequence[Tensor]

    @classmethod
    def now(cls, x: Tensor) -> _RandomState:
        return cls(torch.get_rng_state(), *get_device_states(x))

    def same(self, other: _RandomState) -> bool:
        pairs = zip((self.cpu, *self.states), (other.cpu, *other.states), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def set(self, x: Tensor) -> None:
        torch.set_rng_state(self.cpu)
        if self.devices:
            set_device_states(self.devices, self.states, device_type=x.device.type)


@contextmanager
def _drawing_again(state: _RandomState | None, x: Tensor) -> Iterator[None]:
    """Draw what was drawn from `state` on; None where nothing was."""
    if state is None:
        yield
        return
    now = _RandomState.now(x)
    state.set(x)
    try:
        yield
    finally:
        now.set(x)


class _Parts(nn.Module):
    """A step's modules under one roof, where `functional_call` can exchange what they hold."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


class _Chain:
    """What the steps of one forward share until its backward. No tensor in it has a graph.

    Where it inverts, each step's backward leaves its input here, for the step before, whose output it is a part of.
    """

    def __init__(
        self, model: FlowModel, steps: Sequence[Step], conds: Sequence[Tensor], autocast: _Autocast | None
    ) -> None:
        self.model, self.invert = model, model.backprop == "invert"
        self.steps, self.conds, self.autocast = steps, conds, autocast
        self.random: list[_RandomState | None] = []
        self.left: list[Tensor | None] = []
        self.last: Tensor | None = None  # what the last step returned
        self.inputs: dict[int, Tensor] = {}

    def output(self, k: int) -> Tensor:
        """Return what step k returned."""
        if k + 1 == len(self.steps):
            rest = self.last
            assert rest is not None
        elif k + 1 in self.inputs:
            rest = self.inputs.pop(k + 1)
        else:  # the gradient asked for needs no later step's backward
            step, y = self.steps[k + 1], self.output(k + 1)
            with _as_forward(self.autocast), _drawing_again(self.random[k + 1], y), torch.no_grad():
                hidden = _on_copies(step, {}, step.network, step.kept_of(y), *step.conds_of(self.conds))
                rest = step.inverse(y, hidden)
        left = self.left[k]
        return rest if left is None else torch.cat((left, rest), 1)


def _on_copies(step: Step, parameters: dict[str, Tensor], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with stand-ins for a step's parameters, by their names in `_Parts`, and copies of its buffers.

    A second run of batch normalisation is not to count its batch a second time.
    """
    parts = _Parts(step.parts)
    buffers = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    return torch.func.functional_call(parts, parameters | buffers, (function, *args))


class _RunAgain(torch.autograd.Function):
    """A step whose backward runs it again, from its input or from its output."""

    @staticmethod
    def forward(ctx: Any, chain: _Chain, k: int, names: list[str], x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        ctx.chain, ctx.k, ctx.names = chain, k, names
        step = chain.steps[k]
        conds = rest[: len(step.conds)]
        before = _RandomState.now(x)
        with _as_forward(chain.autocast):
            left, y, log_det = step.forward(x, conds)
        chain.random.append(None if before.same(_RandomState.now(x)) else before)
        left = None if left is None else left.clone()  # a slice would keep the whole
        if chain.invert:
            chain.left.append(None if left is None else left.detach())
        frozen = (p for part in step.parts for p in part.parameters() if not p.requires_grad)
        ctx.frozen = [(p, p._version) for p in frozen if not p.is_inference()]
        # all of the input, or samples to know it by
        ctx.save_for_backward(*rest, _sample(x) if chain.invert else x)
        return (y, log_det) if left is None else (left, y, log_det)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "`create_graph` must be False where `backprop` is 'recompute' or 'invert': they have no second "
                "derivatives; 'autograd' has those that the operations have"
            )
        chain, k = ctx.chain, ctx.k
        step = chain.steps[k]
        if any(p._version != version for p, version in ctx.frozen):  # of the others autograd knows
            raise RuntimeError(f"a frozen parameter of {step.name} has been changed in place since the forward")
        *rest, seen = ctx.saved_tensors
        *grad_y, grad_log_det = grads
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        count = len(step.conds)
        conds = [cond.detach().requires_grad_(need) for cond, need in zip(rest, needs[:count], strict=False)]
        learned = [p.detach().requires_grad_() for p in rest[count:]]
        again = _Again(step, chain.autocast, chain.random[k], chain.invert, needs_x)
        given = chain.output(k) if chain.invert else seen
        grad = torch.cat(grad_y, 1) if step.leaving else grad_y[0]
        stand_ins = dict(zip(ctx.names, learned, strict=True))
        x, *found = _on_copies(step, stand_ins, again.run, given, conds, learned, grad, grad_log_det)
        if chain.invert:
            error = _check(x, seen, step, chain.autocast)
            chain.model.reconstruction_error = max(chain.model.reconstruction_error, error)
            if k > 0:
                chain.inputs[k] = x
        return (None, None, None, *found)


class _Again(NamedTuple):
    """One step once more, and back through it."""

    step: Step
    autocast: _Autocast | None
    random: _RandomState | None
    invert: bool
    needs_x: bool

    def run(
        self, given: Tensor, conds: list[Tensor], learned: list[Tensor], grad_y: Tensor, grad_log_det: Tensor
    ) -> list[Tensor | None]:
        """Return x, and the gradients of x, of each of `conds` and of each of `learned`.

        `given` is x, or y where this inverts. There are two ways back, since the network may run before x is known: one
        through `leave` and the network, and one through `enter`.
        """
        step = self.step
        with _as_forward(self.autocast), _drawing_again(self.random, given), torch.enable_grad():
            if self.invert:
                with torch.no_grad():
                    kept = step.kept_of(given)
            else:
                x, z, log_det = self._enter(given)
                kept = step.kept(z)
            kept = kept.detach().requires_grad_(self.needs_x or bool(learned))  # `enter` may hold some of them
            with running_once():
                hidden = step.network(kept, *conds)
            if self.invert:
                with torch.no_grad():
                    x = step.inverse(given, hidden)
                x, z, log_det = self._enter(x)
            z_alone = z.detach().requires_grad_(z.requires_grad)
            outputs = step.leave(z_alone, hidden)
            view = step.kept(z)
        grad_z, grad_kept, *found = _grads(outputs, (grad_y, grad_log_det), (z_alone, kept, *conds, *learned))
        grad_x, *entering = _grads((z, view, log_det), (grad_z, grad_kept, grad_log_det), (x, *learned))
        for i, g in enumerate(entering, len(conds)):
            total = found[i]
            found[i] = g if total is None else total if g is None else total + g
        return [x.detach(), grad_x, *found]

    def _enter(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = x.detach().requires_grad_(self.needs_x)
        return x, *self.step.enter(x)


def _grads(
    outputs: Sequence[Tensor | None], grads: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of `inputs`, None for those that need none or of which nothing depends."""
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None and g is not None and o.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _sample(x: Tensor) -> Tensor:
    """Return a few steps of x [B, C, T] or [B, C, H, W], spread over batch and time, and behind them the rms of all."""
    wide = as_steps(x if x.dtype == torch.float64 else x.float())
    count = wide.shape[0] * wide.shape[2]
    # multiples of the golden ratio fill a range at uneven distances; equal ones can follow a diagonal or rim of images
    turns = 0.6180339887498949 * torch.arange(min(SAMPLED, count), device=x.device, dtype=torch.float64)
    places = (turns % 1 * count).long()
    some = wide[places // wide.shape[2], :, places % wide.shape[2]]
    return torch.cat((some.flatten(), wide.square().mean().sqrt()[None]))


def _check(x: Tensor, known: Tensor, step: Step, autocast: _Autocast | None) -> float:
    """Return how far x is from the tensor of which `known` are the samples, over what it may be.

    The difference of two tensors' rms is no more than the rms of their difference, and finds a few values that are far
    off wherever they are. What was not finite before is not compared.

    Raises:
        ReconstructionError: that is more than 1.
    """
    off = _sample(x) - known
    error = torch.maximum(off[:-1].square().mean().sqrt(), off[-1].abs())
    difference, rms, finite = torch.stack((error, known[-1], known.isfinite().all().to(known.dtype))).tolist()
    network = autocast.dtype if autocast is not None and autocast.enabled else x.dtype
    bound = ATOL + max(RTOL, torch.finfo(network).eps) * rms
    if finite and not difference <= bound:  # NaN, too
        raise ReconstructionError(
            f"the input of {step.name} comes back from its output with an error of {difference:.2g} (rms), more than "
            f"the bound of {bound:.2g}: its gradients would be wrong. The step cannot be inverted well enough any "
            f"more; `backprop` 'recompute' keeps the input"
        )
    return difference / bound if finite else 0.0
