"""What holds for every operation: backends agree, gradients are right, PyTorch's own checks pass, it compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_map

from fastflow import ops, use_backend
from fastflow.ops import registry
from tests.ops.cases import BACKENDS, CASES, LENGTHS, Case, convert, tensors

by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def takes(case: Case, backend: str) -> bool:
    """Whether the backend has the kernel for this kind of arguments."""
    args, _ = case.arguments(4, torch.float32)
    return registry._unsupported(backend, case.function.__name__, *args) is None


PAIRS = [(case, backend) for case in CASES for backend in BACKENDS if takes(case, backend)]


def on_backends(pairs: list[tuple[Case, str]]) -> Any:
    return pytest.mark.parametrize(("case", "backend"), pairs, ids=lambda x: x if isinstance(x, str) else x.name)


def run(case: Case, args: Any, options: Any, backend: str = "reference") -> list[torch.Tensor]:
    with use_backend(backend):
        return list(tensors(case.function(*args, **options)))


@on_backends(PAIRS)
@pytest.mark.parametrize("length", LENGTHS)
def test_float32_against_the_float64_reference(case: Case, backend: str, length: int) -> None:
    args, options = case.arguments(length, torch.float32)
    got = run(case, args, options, backend)
    expected = run(case, convert(args, torch.float64), convert(options, torch.float64))
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), e, rtol=1e-4, atol=1e-5)


HALF = [
    (c, b, d)
    for c, b in PAIRS
    for d in (torch.float16, torch.bfloat16)
    if registry._unsupported(b, "gate", torch.zeros(1, dtype=d)) is None
]


def in_half(triples: list[tuple[Case, str, torch.dtype]]) -> Any:
    return pytest.mark.parametrize(
        ("case", "backend", "dtype"), triples, ids=lambda x: x.name if isinstance(x, Case) else str(x)
    )


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().mean().sqrt()


@in_half(HALF)
def test_half_precision_keeps_its_dtype_and_its_bound(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Backends may err twice as much as the reference, which is plain PyTorch in that dtype; it has a bound of its own,
    for what the public function adds around it."""
    args, options = case.arguments(130, dtype)
    got = run(case, args, options, backend)
    plain = run(case, args, options)
    expected = run(case, convert(args, torch.float64), convert(options, torch.float64))
    eps = torch.finfo(dtype).eps
    for g, p, e in zip(got, plain, expected, strict=True):
        assert g.dtype == p.dtype and g.dtype in (dtype, torch.float32)
        if g.numel() == 0:  # no residual channels
            continue
        size = rms(e).clamp(min=1.0)
        assert rms(p - e) <= 8 * eps * size
        assert rms(g - e) <= 2 * rms(p - e) + 1e-5 * size  # what float32 is granted, where PyTorch happens to be exact


@in_half([(c, b, d) for c, b, d in HALF if b != "reference"])
def test_half_precision_gradients_keep_their_bound(case: Case, dtype: torch.dtype, backend: str) -> None:
    args, options = case.arguments(33, dtype)
    wide_args, wide_options = convert(args, torch.float64), convert(options, torch.float64)
    got = gradients(case, args, options, backend)
    plain = gradients(case, args, options, "reference")
    expected = gradients(case, wide_args, wide_options, "reference")
    for g, p, e in zip(got, plain, expected, strict=True):
        assert g.dtype == p.dtype == dtype
        assert rms(g - e) <= 2 * rms(p - e) + 1e-5 * rms(e).clamp(min=1.0)


@by_name
def test_gradcheck(case: Case) -> None:
    args, options = case.arguments(4, torch.float64)
    leaves = [t for t in tensors(args) if t.is_floating_point() and t is not mask_of(case, args)]
    if isinstance(args[-1], ops.PLU):  # the permutation and the signs are constants
        leaves = [args[0], args[1].lower, args[1].upper, args[1].log_s]
    for leaf in leaves:
        leaf.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *_: tuple(tensors(case.function(*args, **options))), leaves)


def mask_of(case: Case, args: Any) -> Any:
    return args[9] if case.function in (ops.wn, ops.wn_layer) else None


@on_backends([(c, b) for c, b in PAIRS if b != "reference"])
def test_gradients_of_backends_against_the_reference(case: Case, backend: str) -> None:
    args, options = case.arguments(33, torch.float32)
    expected = gradients(case, args, options, "reference")
    for g, e in zip(gradients(case, args, options, backend), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


def gradients(case: Case, args: Any, options: Any, backend: str) -> list[torch.Tensor]:
    """The gradients of all arguments, for gradients of all outputs that are the same in every dtype."""
    if isinstance(args[-1], ops.PLU):
        leaves = [args[0], args[1].lower, args[1].upper, args[1].log_s]
    else:
        leaves = [t for t in tensors(args) if t is not mask_of(case, args)]
    for leaf in leaves:
        leaf.requires_grad_(True)
    with use_backend(backend):  # a backend without a backward of its own saves for the reference's
        outs = [o for o in tensors(case.function(*args, **options)) if o.requires_grad]
        torch.manual_seed(1)
        weights = [torch.randn(o.shape).bfloat16().to(o.dtype) for o in outs]  # values that every dtype holds
        return list(torch.autograd.grad(outs, leaves, weights))


GATED = [c for c in CASES if c.function in (ops.wn, ops.wn_layer)]  # the others compute all gradients: they are cheap


@pytest.mark.parametrize("case", GATED, ids=lambda c: c.name)
def test_only_what_needs_a_gradient_is_asked_of_the_backward(case: Case) -> None:
    """The gated operations are told which gradients are wanted, and give an empty tensor for each of the others."""
    args, options = case.arguments(5, torch.float32)
    args[0].requires_grad_(True)
    results: list[list[torch.Tensor]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.__name__.startswith(("wn_backward", "wn_layer_backward")):
                results.append(result)
            return result

    with Recorder():
        sum(o.sum() for o in tensors(case.function(*args, **options))).backward()
    (grads,) = results
    assert grads[0].shape == args[0].shape
    assert all(g.numel() == 0 for g in grads[1:])


def raw_calls(case: Case, length: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The custom-operator calls that the public function makes, with their arguments."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "fastflow":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    args, options = case.arguments(length, torch.float64)
    for leaf in tensors(args):
        if leaf is not mask_of(case, args):
            leaf.requires_grad_(True)
    with Recorder():
        outs = [o for o in tensors(case.function(*args, **options)) if o.requires_grad]
        torch.autograd.grad(outs, [args[0]], [torch.ones_like(o) for o in outs], allow_unused=True)
    return calls


@by_name
def test_opcheck(case: Case) -> None:
    calls = raw_calls(case, 9)
    assert len(calls) == 2, "one forward, one backward"
    for func, args in calls:
        forward = not func.__name__.split(".")[0].endswith("_backward")
        args = tree_map(lambda t: t.detach().clone() if isinstance(t, torch.Tensor) else t, args)
        if forward:
            args = tree_map(lambda t: t.requires_grad_(True) if isinstance(t, torch.Tensor) else t, args)
        # a backward has no derivative of its own: only its schema and fake kernel are checked
        utils = ("test_schema", "test_faketensor") + (
            ("test_autograd_registration", "test_aot_dispatch_dynamic") * forward
        )
        torch.library.opcheck(func, args, test_utils=utils)


@by_name
def test_compiles_whole_and_once_for_all_lengths(case: Case) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    def function(*args: Any, **options: Any) -> Any:
        return case.function(*args, **options)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for length in (40, 50, 64):
        args, options = case.arguments(length, torch.float32)
        got = list(tensors(compiled(*args, **options)))
        expected = list(tensors(case.function(*args, **options)))
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e)
    assert counter.frame_count == 1


def test_inductor_runs_a_block_forward_and_backward() -> None:
    torch._dynamo.reset()
    case = next(c for c in CASES if c.name == "wn")
    args, options = case.arguments(32, torch.float32)
    for leaf in tensors(args):
        leaf.requires_grad_(True)
    leaves = list(tensors(args))

    def loss(*a: Any) -> torch.Tensor:
        return case.function(*a, **options).square().sum()

    expected = torch.autograd.grad(loss(*args), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*args), leaves)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("name", ["gate", "wn_layer", "wn"])
def test_autocast_casts_the_gated_stack(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    args, options = case.arguments(16, torch.float32)
    expected = run(case, args, options)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(case, args, options)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == (torch.float32 if name == "gate" else torch.bfloat16)
        torch.testing.assert_close(g.float(), e, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", ["affine exp forward", "invconv", "invconv plu reverse", "actnorm"])
def test_under_autocast_invertible_operations_take_what_a_convolution_gave(name: str) -> None:
    """Half-precision x meets float32 parameters: the arithmetic is float32, as without autocast."""
    case = next(c for c in CASES if c.name == name)
    args, options = case.arguments(16, torch.float32)
    half = (args[0].bfloat16(), *args[1:])
    expected = run(case, (half[0].float(), *args[1:]), options)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(case, half, options)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, e)


def test_actnorm_init_sums_in_float32() -> None:
    x = 40 + 0.5 * torch.randn(8, 4, 16000)
    loc, scale = ops.actnorm_init(x.half())
    assert loc.dtype == scale.dtype == torch.float16
    torch.testing.assert_close(loc.float(), -x.mean((0, 2)), rtol=2e-3, atol=0)
    torch.testing.assert_close(scale.float(), 1 / x.std((0, 2)), rtol=2e-2, atol=0)
    assert torch.isfinite(ops.actnorm_init(torch.ones(2, 4, 16).half())[1]).all()


@pytest.mark.parametrize("weight", [torch.arange(1.0, 10).reshape(3, 3), torch.tensor([[float("inf"), 1], [0, 1]])])
def test_nearly_singular_and_infinite_weights_are_refused(weight: torch.Tensor) -> None:
    x = torch.zeros(1, len(weight), 2)
    for call in (lambda: ops.invconv1x1(x, weight, reverse=True), lambda: ops.PLU.from_weight(weight)):
        with pytest.raises(ValueError, match="`weight` must be invertible; got a"):
            call()


def test_every_operation_has_a_case() -> None:
    assert {case.function.__name__ for case in CASES} == set(registry.SCHEMAS)
