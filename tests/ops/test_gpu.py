"""The Triton kernels on a GPU: what the interpreter cannot show. `make gpu` runs these."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastflow import ops, use_backend
from tests.ops.cases import CASES, LENGTHS, Case, convert, tensors

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
HALVES = [torch.float16, torch.bfloat16]


def on_device(values: Any, device: str = DEVICE) -> Any:
    """The same arguments on a device, the strides and the misalignment kept."""
    if isinstance(values, torch.Tensor):
        if values._base is None or values._base.dtype != values.dtype:
            return values.to(device)
        return values._base.to(device).as_strided(values.shape, values.stride(), values.storage_offset())
    if isinstance(values, ops.PLU):
        return ops.PLU(*(on_device(v, device) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(on_device(v, device) for v in values)
    if isinstance(values, dict):
        return {k: on_device(v, device) for k, v in values.items()}
    return values


def made(case: Case, length: int, dtype: torch.dtype, device: str = DEVICE) -> tuple[Any, Any]:
    torch.manual_seed(0)
    args, options = case.arguments(length, dtype)
    return on_device(args, device), on_device(options, device)


def run(case: Case, args: Any, options: Any, backend: str = "triton") -> list[torch.Tensor]:
    with use_backend(backend):
        return list(tensors(case.function(*args, **options)))


def expected(case: Case, args: Any, options: Any) -> list[torch.Tensor]:
    return run(case, convert(args, torch.float64), convert(options, torch.float64), "reference")


@by_name
@pytest.mark.parametrize("length", LENGTHS)
def test_float32(case: Case, length: int) -> None:
    args, options = made(case, length, torch.float32)
    for got, want in zip(run(case, args, options), expected(case, args, options), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@by_name
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", [129, 1134])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(
    case: Case, dtype: torch.dtype, length: int
) -> None:
    args, options = made(case, length, dtype)
    plain = run(case, args, options, "reference")
    for got, p, want in zip(run(case, args, options), plain, expected(case, args, options), strict=True):
        assert got.dtype == p.dtype
        if got.numel():
            rounding = torch.finfo(got.dtype).eps * want.square().mean().sqrt()
            bound = torch.maximum(2 * (p.double() - want).square().mean().sqrt(), rounding)
            assert (got.double() - want).square().mean().sqrt() <= bound


@by_name
@pytest.mark.parametrize("length", [33, 300])
def test_gradients(case: Case, length: int) -> None:
    grads = []
    for backend, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        args, options = made(case, length, torch.float32)
        args, options = convert(args, dtype), convert(options, dtype)
        leaves = [t.detach().requires_grad_(True) for t in tensors(args) if t.is_floating_point()]
        rest = iter(leaves)
        args = _with_leaves(args, rest)
        with use_backend(backend):
            outs = [o for o in tensors(case.function(*args, **options)) if o.requires_grad]
            torch.manual_seed(1)
            given = [torch.randn(o.shape, device="cpu").to(o) for o in outs]
            grads.append(torch.autograd.grad(outs, leaves, given, allow_unused=True))
    for want, got in zip(*grads, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def _with_leaves(values: Any, rest: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return next(rest) if values.is_floating_point() else values
    if isinstance(values, ops.PLU):
        return ops.PLU(*(_with_leaves(v, rest) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(_with_leaves(v, rest) for v in values)
    return values


@by_name
def test_the_same_bits_every_time(case: Case) -> None:
    args, options = made(case, 1134, torch.float32)
    first = run(case, args, options)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(case, args, options), first, strict=True))


@by_name
def test_captured_in_a_graph(case: Case) -> None:
    if case.name.startswith("invconv") and "reverse" in case.name:
        pytest.skip("the inverse is checked on the host")
    args, options = made(case, 130, torch.float32)
    want = run(case, args, options)
    graph = torch.cuda.CUDAGraph()
    with use_backend("triton"), torch.cuda.graph(graph):
        got = list(tensors(case.function(*args, **options)))
    for out in got:
        out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@by_name
def test_on_another_stream(case: Case) -> None:
    args, options = made(case, 1134, torch.float32)
    want = run(case, args, options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on the default stream would come before this has ended
        late = convert(args, torch.float32)
        late = _with_leaves(late, (t * 1 for t in tensors(late) if t.is_floating_point()))
        got = run(case, late, options)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
@by_name
def test_on_a_second_device(case: Case) -> None:
    args, options = made(case, 130, torch.float32)
    want = run(case, args, options)
    got = run(case, on_device(args, "cuda:1"), on_device(options, "cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(g.device.index == 1 and torch.equal(g.to("cuda:0"), w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["wn", "affine exp forward", "invconv", "actnorm"])
def test_compiled_forward_and_backward(name: str) -> None:
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == name)
    args, options = made(case, 130, torch.float32)
    leaves = [t.requires_grad_(True) for t in tensors(args)]

    def loss(*a: Any) -> torch.Tensor:
        return sum(
            (o.float().square().sum() for o in tensors(case.function(*a, **options))), torch.zeros((), device=DEVICE)
        )

    with use_backend("triton"):
        want = torch.autograd.grad(loss(*args), leaves, allow_unused=True)
        got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*args), leaves, allow_unused=True)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_under_autocast() -> None:
    case = next(c for c in CASES if c.name == "wn")
    args, options = made(case, 130, torch.float32)
    want = run(case, args, options)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = run(case, args, options)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.bfloat16
        torch.testing.assert_close(g.float(), w, rtol=0.05, atol=0.1)
