"""What `tests/ops/test_contract.py` leaves to say of `flow_step`: mixed dtypes, autocast, layouts, what it replaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow import BackendError, ops, use_backend
from fastflow.nn import AffineCoupling
from tests.ops.cases import BACKENDS, CASES, Case, convert, tensors

FLOW_STEPS = [case for case in CASES if case.function is ops.flow_step]
by_name = pytest.mark.parametrize("case", FLOW_STEPS, ids=lambda c: c.name)
TRITON = [pytest.param("triton", marks=pytest.mark.skipif("triton" not in BACKENDS, reason="no GPU, not interpreted"))]


def outputs_and_gradients(case: Case, args: Any, options: Any, backend: str) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for t in tensors(args)]
    given = iter(leaves)
    args = [None if a is None else next(given) for a in args]
    with use_backend(backend):
        outs = list(tensors(case.function(*args, **options)))
        torch.manual_seed(2)
        seeds = [torch.randn(o.shape, dtype=torch.float64).to(o.dtype) for o in outs]
        grads = torch.autograd.grad([o for o in outs if o.numel()], leaves, [s for s in seeds if s.numel()])
    return [*outs, *grads]


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", TRITON)
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    args, options = case.arguments(130, dtype)
    exact = outputs_and_gradients(case, convert(args, torch.float64), options, "reference")
    plain = outputs_and_gradients(case, args, options, "reference")
    ours = outputs_and_gradients(case, args, options, backend)
    eps = torch.finfo(dtype).eps
    for got, other, expected in zip(ours, plain, exact, strict=True):
        assert got.dtype == other.dtype
        floor = 0.5 * eps * expected.square().mean().sqrt()  # of four numbers, PyTorch may round all well by luck
        errors = [(x.double() - expected).square().mean().sqrt() for x in (got, other)]
        assert got.numel() == 0 or errors[0] <= 2 * errors[1] + floor


@by_name
@pytest.mark.parametrize("backend", ["reference", *TRITON])
def test_a_half_precision_network_and_a_float32_flow(case: Case, backend: str) -> None:
    """The end convolution in bfloat16, the coupling and the product in float32, gradients each in its own dtype."""
    args, options = case.arguments(40, torch.float32)
    mixed = [None if a is None else a.bfloat16() if 1 <= i <= 3 else a for i, a in enumerate(args)]
    widened = [None if a is None else a.double() for a in mixed]
    exact = outputs_and_gradients(case, widened, options, "reference")
    ours = outputs_and_gradients(case, mixed, options, backend)
    count = len(ours) - len(list(tensors(mixed)))
    for got, expected in zip(ours[:count], exact[:count], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=0.03, atol=0.03 * expected.numel() ** 0.5)
    for got, expected, leaf in zip(ours[count:], exact[count:], tensors(mixed), strict=True):
        assert got.dtype == leaf.dtype
        error = (got.double() - expected).square().mean().sqrt()
        assert error <= 0.02 * expected.square().mean().sqrt()


def test_under_autocast_the_convolution_is_half_and_the_flow_float32() -> None:
    case = next(c for c in FLOW_STEPS if c.name == "flow_step joining")
    args, options = case.arguments(16, torch.float32)
    y, log_det = ops.flow_step(*args, **options)
    with torch.autocast("cpu", torch.bfloat16):
        got, got_det = ops.flow_step(*args, **options)
        from_half, _ = ops.flow_step(args[0].bfloat16(), *args[1:], **options)
    assert got.dtype == got_det.dtype == from_half.dtype == torch.float32
    assert not torch.equal(got, y)
    torch.testing.assert_close(got, y, rtol=0.05, atol=0.05)
    torch.testing.assert_close(got_det, log_det, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["exp", "sigmoid", "additive"])
@pytest.mark.parametrize("transform_first", [False, True])
def test_it_is_the_coupling_and_the_product_and_the_inverse_returns(
    backend: str, form: str, transform_first: bool
) -> None:
    torch.manual_seed(3)
    x, hidden = torch.randn(2, 8, 21), torch.randn(2, 20, 21)
    end = torch.nn.Conv1d(20, 4 if form == "additive" else 8, 1)
    weight = torch.linalg.qr(torch.randn(6, 6)).Q
    coupling = AffineCoupling(end, form=form, transform_first=transform_first)
    coupling.net = Constant(end(hidden))
    with torch.no_grad(), use_backend("reference"):
        z, expected_det = coupling(x)
        expected = torch.cat((z[:, :2], weight @ z[:, 2:]), 1)
    with torch.no_grad(), use_backend(backend):
        options: dict[str, Any] = {"form": form, "transform_first": transform_first}
        y, log_det = ops.flow_step(x, hidden, end.weight, end.bias, weight[:, :, None], n_early=2, **options)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_det, expected_det, rtol=1e-4, atol=1e-4)

        mixed = weight.t() @ y[:, 2:]
        back, negative = ops.flow_step(
            torch.cat((y[:, :2], mixed), 1), hidden, end.weight, end.bias, reverse=True, **options
        )
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(negative, -log_det)


class Constant(torch.nn.Module):
    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, *_: Tensor) -> Tensor:
        return self.out


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layout_gives_the_same_numbers(backend: str) -> None:
    """Channels beside each other, a slice of wider memory, a step's view of a longer one: no copy is asked for."""
    case = next(c for c in FLOW_STEPS if c.name == "flow_step joining")
    args, options = case.arguments(37, torch.float32)
    plain = [None if a is None else a.contiguous() for a in args]

    def relaid(a: Tensor, kind: str) -> Tensor:
        if a.dim() < 3:
            return a
        if kind == "channels last":
            return a.transpose(1, 2).contiguous().transpose(1, 2)
        wide = torch.full((a.shape[0], a.shape[1] + 3, 2 * a.shape[2] + 5), float("nan"))
        view = wide[:, 2:-1, 3 : 3 + 2 * a.shape[2] : 2]
        return view.copy_(a)

    with use_backend(backend):
        expected = ops.flow_step(*plain, **options)
        for kind in ("channels last", "slice"):
            got = ops.flow_step(*(None if a is None else relaid(a, kind) for a in plain), **options)
            for g, e in zip(got, expected, strict=True):
                torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_log_det_y_is_the_same_bits(backend: str) -> None:
    case = next(c for c in FLOW_STEPS if c.name == "flow_step reverse")
    args, options = case.arguments(50, torch.float32)
    with use_backend(backend):
        y, _ = ops.flow_step(*args, **options)
        same, nothing = ops.flow_step(*args, **options | {"log_det": False})
    assert torch.equal(y, same)
    assert nothing.shape == (0,)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_refuses_more_channels_than_its_tiles_hold_and_auto_does_not(backend: str) -> None:
    x, hidden, end_weight = torch.zeros(1, 34, 3), torch.zeros(1, 5, 3), torch.zeros(34, 5)
    with use_backend(backend), pytest.raises(BackendError, match="its `flow_step` takes at most 32 channels; got 34"):
        ops.flow_step(x, hidden, end_weight)
    assert ops.flow_step(x, hidden, end_weight)[0].shape == x.shape
