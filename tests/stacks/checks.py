"""What the tests of every stack hold a replaced model against: its original, on the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastflow.stacks import Report, accelerate
from fastflow.stacks.gated import GatedBlock

RTOL, ATOL = 1e-4, 1e-5
"""Of operations and their gradients in float32."""


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [t for item in result for t in tensors(item)]
    return []


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters: constructors start some at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator).to(p)
            if name.endswith(("weight_g", "original0")):
                p.copy_(1 + 0.3 * torch.tanh(noise))
            elif p.dim() >= 2 and not p.any():
                p.copy_(0.1 * noise)
            elif p.dim() == 1:
                p.add_(0.1 * noise)
    return module


def inputs_of(*shapes: tuple[int, ...] | None) -> list[Any]:
    """Random tensors whose gradients are wanted; None for None."""
    return [None if shape is None else torch.randn(*shape, requires_grad=True) for shape in shapes]


def masked(*lengths: int) -> Tensor:
    """A mask [B, 1, T] of these lengths."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None].float()


def run(module: nn.Module, call: Callable[[], Any], inputs: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of `call` and the gradients of all parameters and `inputs`, from one fixed loss."""
    outputs = tensors(call())
    loss = torch.zeros(())
    for i, out in enumerate(outputs):
        if out.requires_grad:
            weight = torch.linspace(-1, 1, out.numel()).view(out.shape) + 0.1 * i
            loss = loss + (out * weight.to(out)).sum().float()
    wanted = [p for p in module.parameters() if p.requires_grad] + [
        t for t in inputs if t is not None and t.requires_grad
    ]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    return [out.detach() for out in outputs], grads


def close(got: list[Tensor], expected: list[Tensor], rtol: float = RTOL, atol: float = ATOL) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, scale))


def replaced_equals_original(
    module: nn.Module, call: Callable[[], Any], inputs: list[Any], expected: int, *, also_training: bool = True
) -> Report:
    """Hold outputs, gradients and state against the original's, in evaluation and training; revert is bit for bit.

    `call()` runs `module` on `inputs`; where it draws random numbers, it seeds them itself. `expected` blocks must be
    replaced. The module is left replaced, in evaluation mode.
    """
    known: dict[bool, Any] = {}
    state = {name: t.clone() for name, t in module.state_dict().items()}
    parameters = list(module.parameters())
    modes = (False, True) if also_training else (False,)
    for mode in modes:
        module.train(mode)
        known[mode] = run(module, call, inputs)
    module.eval()
    with torch.no_grad():
        plain = tensors(call())
    report = accelerate(module)
    assert len(report.replaced) == expected, str(report)
    with mock.patch.object(GatedBlock, "_worth_it", return_value=True):  # also where the original would run
        for mode in modes:
            module.train(mode)
            outputs, grads = run(module, call, inputs)
            close(outputs, known[mode][0])
            close(grads, known[mode][1])
    module.eval()
    with torch.no_grad():
        for _ in range(2):  # packed, then from the cache
            close(tensors(call()), plain)
    after = module.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], t) for name, t in state.items())
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    report.revert()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(tensors(call()), plain, strict=True))
    assert not any("_fastflow" in part.__dict__ for part in module.modules())
    return accelerate(module)
