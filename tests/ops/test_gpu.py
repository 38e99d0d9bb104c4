"""The kernels on a GPU: what interpreter and emulator cannot show. `make gpu` runs these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastflow import ops, use_backend
from fastflow.bench.cases import Block, Maker
from fastflow.ops import registry
from tests.ops.cases import CASES, LENGTHS, WIDE, Case, convert, tensors
from tests.ops.test_contract import rms

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

by_backend = pytest.mark.parametrize("backend", ["triton", "cuda"])
TAKE_PHASES = {backend for backend, op in registry._WITH_PHASES if op == "wn"}
by_case = pytest.mark.parametrize(
    ("case", "backend"),
    [(c, b) for c in (*CASES, *WIDE) for b in ("triton", "cuda") if "phases" not in c.name or b in TAKE_PHASES],
    ids=lambda x: x.name if isinstance(x, Case) else x,
)
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch, no_tf32: None) -> None:
    """No tf32; cuBLAS as deterministic as `conftest.py` asks for."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


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


def run(case: Case, args: Any, options: Any, backend: str) -> list[torch.Tensor]:
    with use_backend(backend):
        return list(tensors(case.function(*args, **options)))


def copied(values: Any) -> Any:
    """Copies that are laid out in memory as `values` are."""
    if isinstance(values, torch.Tensor):
        base = values if values._base is None else values._base
        return base.clone().as_strided(values.shape, values.stride(), values.storage_offset())
    if isinstance(values, ops.PLU):
        return ops.PLU(*(copied(v) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(copied(v) for v in values)
    return values


def expected(case: Case, args: Any, options: Any) -> list[torch.Tensor]:
    return run(case, convert(args, torch.float64), convert(options, torch.float64), "reference")


@by_case
@pytest.mark.parametrize("length", LENGTHS)
def test_float32(backend: str, case: Case, length: int) -> None:
    args, options = made(case, length, torch.float32)
    for got, want in zip(run(case, args, options, backend), expected(case, args, options), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@by_case
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", [129, 1134])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(
    backend: str, case: Case, dtype: torch.dtype, length: int
) -> None:
    args, options = made(case, length, dtype)
    plain = run(case, args, options, "reference")
    for got, p, want in zip(run(case, args, options, backend), plain, expected(case, args, options), strict=True):
        assert got.dtype == p.dtype
        if got.numel():
            assert rms(got - want) <= half_bound(p, want)


def half_bound(plain: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """What `test_contract.py` grants: twice plain PyTorch's error, and float32's where PyTorch happens to be exact."""
    return 2 * rms(plain - want) + 1e-5 * rms(want).clamp(min=1.0)


@by_case
@pytest.mark.parametrize("length", [33, 300])
def test_gradients(backend: str, case: Case, length: int) -> None:
    args, options = made(case, length, torch.float32)
    wants = gradients(case, convert(args, torch.float64), convert(options, torch.float64), "reference")
    for got, want in zip(gradients(case, args, options, backend), wants, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def gradients(case: Case, args: Any, options: Any, backend: str) -> tuple[torch.Tensor | None, ...]:
    """The gradients of all arguments, for gradients of all outputs that are the same in every dtype."""
    leaves = [t.detach().requires_grad_(True) for t in tensors(args) if t.is_floating_point()]
    args = _with_leaves(args, iter(leaves))
    with use_backend(backend):
        outs = [o for o in tensors(case.function(*args, **options)) if o.requires_grad]
        torch.manual_seed(1)
        given = [torch.randn(o.shape, device="cpu").bfloat16().to(o) for o in outs]
        return torch.autograd.grad(outs, leaves, given, allow_unused=True)


def _with_leaves(values: Any, rest: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return next(rest) if values.is_floating_point() else values
    if isinstance(values, ops.PLU):
        return ops.PLU(*(_with_leaves(v, rest) for v in values))
    if isinstance(values, list | tuple):
        return type(values)(_with_leaves(v, rest) for v in values)
    return values


def _real(block: Block, op: str) -> Callable[..., Any]:
    """Arguments of a published size: several blocks of channels, and of the widest matrix instructions."""

    def make(t: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        m = Maker(dtype, "cpu")
        if op == "wn":
            args, names = block.arguments(m, 2, t), ("dilations", "causal", "res_scale", "skip_scale", "last_residual")
        else:
            args, names = block.layer_arguments(m, 2, t, 1), ("dilation", "causal", "res_scale", "residual")
        return args[:10], dict(zip(names, args[10:], strict=True))

    return make


REAL = [
    Case("wn_layer 96", ops.wn_layer, _real(Block("", 96, 3, 3, (1, 2, 4), 80), "wn_layer")),
    Case("wn_layer 256", ops.wn_layer, _real(Block("", 256, 3, 3, (1, 64), 640), "wn_layer")),
    Case("wn 192 global mask", ops.wn, _real(Block("", 192, 5, 3, (1,), 256, "global", mask=True), "wn")),
    Case("wn 256", ops.wn, _real(Block("", 256, 3, 3, (1, 2, 4), 640), "wn")),
]


@pytest.mark.parametrize("case", REAL, ids=lambda c: c.name)
@pytest.mark.parametrize("precision", ["bfloat16", "float32", "tf32"])
@by_backend
def test_real_sizes_forward_and_backward(backend: str, case: Case, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    args, options = made(case, 700, dtype)

    def both(args: Any, options: Any, backend: str) -> list[torch.Tensor | None]:
        return [*run(case, args, options, backend), *gradients(case, args, options, backend)]

    wants = both(convert(args, torch.float64), convert(options, torch.float64), "reference")
    plains = both(args, options, "reference")
    if precision == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # until the fixture ends
    for i, (got, plain, want) in enumerate(zip(both(args, options, backend), plains, wants, strict=True)):
        if got is None or plain is None or want is None:
            assert got is None and plain is None and want is None, i
        elif got.numel():
            assert got.dtype == plain.dtype and got.shape == plain.shape
            bound = {"float32": 1e-4, "tf32": 2e-3}.get(precision)
            limit = half_bound(plain, want) if bound is None else bound * rms(want)
            assert rms(got - want) <= limit, f"output {i} of {list(got.shape)}"


@by_case
def test_the_same_bits_every_time(backend: str, case: Case) -> None:
    args, options = made(case, 1134, torch.float32)
    first = run(case, args, options, backend)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(case, args, options, backend), first, strict=True))


@by_case
def test_captured_in_a_graph(backend: str, case: Case) -> None:
    if case.name.startswith("invconv") and "reverse" in case.name:
        pytest.skip("the inverse is checked on the host")
    args, options = made(case, 130, torch.float32)
    if case.function is ops.invconv1x1 and args[0].shape[1] > 32:
        pytest.skip("the log-determinant of more than 32 channels is from torch.linalg, which may not be capturable")
    want = run(case, args, options, backend)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(case, args, options, backend)
        with torch.cuda.graph(graph, stream=stream):
            got = run(case, args, options, backend)
    torch.cuda.current_stream().wait_stream(stream)
    for out in got:
        out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@by_case
def test_on_another_stream(backend: str, case: Case) -> None:
    args, options = made(case, 1134, torch.float32)
    want = run(case, args, options, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on the default stream would come before this has ended
        got = run(case, copied(args), options, backend)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
@by_case
def test_on_a_second_device(backend: str, case: Case) -> None:
    args, options = made(case, 130, torch.float32)
    want = run(case, args, options, backend)
    got = run(case, on_device(args, "cuda:1"), on_device(options, "cuda:1"), backend)
    assert torch.cuda.current_device() == 0
    assert all(g.device.index == 1 and torch.equal(g.to("cuda:0"), w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["wn", "affine exp forward", "invconv", "actnorm"])
@by_backend
def test_compiled_forward_and_backward(backend: str, name: str) -> None:
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == name)
    args, options = made(case, 130, torch.float32)
    leaves = [t.requires_grad_(True) for t in tensors(args)]

    def loss(*a: Any) -> torch.Tensor:
        return sum(
            (o.float().square().sum() for o in tensors(case.function(*a, **options))), torch.zeros((), device=DEVICE)
        )

    with use_backend(backend):
        want = torch.autograd.grad(loss(*args), leaves, allow_unused=True)
        got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*args), leaves, allow_unused=True)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@by_backend
def test_under_autocast(backend: str) -> None:
    case = next(c for c in CASES if c.name == "wn")
    args, options = made(case, 130, torch.float32)
    want = run(case, args, options, backend)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = run(case, args, options, backend)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.bfloat16
        torch.testing.assert_close(g.float(), w, rtol=0.05, atol=0.1)
