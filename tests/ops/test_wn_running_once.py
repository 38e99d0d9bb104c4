"""`wn` that keeps its layers' states for a backward that follows at once has the gradients of the one that does not."""

from __future__ import annotations

import pytest
import torch

from fastflow import ops, use_backend
from fastflow.ops import registry
from fastflow.ops.wn.api import running_once
from tests.ops.cases import CASES, Case, tensors
from tests.ops.test_contract import gradients

BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])
WN = [case for case in CASES if case.function is ops.wn]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", WN, ids=lambda case: case.name)
@pytest.mark.parametrize("length", [0, 1, 33])
def test_results_and_gradients(case: Case, length: int, backend: str) -> None:
    args, options = case.arguments(length, torch.float32)
    with use_backend(backend):
        wanted = gradients(case, args, options, backend)
        expected = case.function(*args, **options)
        with running_once():
            got = case.function(*args, **options)
            found = gradients(case, args, options, backend)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for g, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_needs_a_gradient_gets_one(backend: str) -> None:
    args, options = WN[0].arguments(9, torch.float32)
    h, cond = args[0].requires_grad_(), args[5]
    args[1][0].requires_grad_()
    with use_backend(backend), running_once():
        ops.wn(*args, **options).sum().backward()
    assert [t.grad is not None for t in tensors(args)].count(True) == 2 and h.grad is not None and cond.grad is None


def test_layers_run_twice_not_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward run each layer's first product once where the states are kept."""
    from fastflow.ops.wn import reference

    calls: list[int] = []
    run = reference._gate_input
    monkeypatch.setattr(reference, "_gate_input", lambda *args: calls.append(1) or run(*args))
    args, options = WN[0].arguments(9, torch.float32)
    args[0].requires_grad_()
    layers = len(args[1])
    with use_backend("reference"):
        ops.wn(*args, **options).sum().backward()
        assert len(calls) == 2 * layers
        with running_once():
            out = ops.wn(*args, **options)
        out.sum().backward()
    assert len(calls) == 3 * layers
