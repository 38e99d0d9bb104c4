"""Whether a result is right: float32 against float64, half precision against float32 by plain PyTorch's own error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastflow.bench.rows import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HAVE_LOG_DET = ("affine_coupling", "invconv1x1", "actnorm", "flow_step")
"""The operations whose second output is a log-determinant."""
LOG_DET_TERM = 1e-5
"""What a float32 log-determinant may be off for every value that it is the sum over."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def no_tf32() -> None:
    """Let float32 mean float32 on a GPU, for everyone."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def converted(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, list | tuple):
        return type(values)(converted(v, dtype) for v in values)
    return values


def wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


def size(x: Tensor) -> float:
    """Return the rms, never zero."""
    return max(float(x.double().square().mean().sqrt()), 1e-30)


def relative(x: Tensor, reference: Tensor) -> float:
    """Return rms of the error / rms of the reference."""
    return float((x.double() - reference.double()).square().mean().sqrt()) / size(reference)


def worst(row: Row, got: Any, expected: Any, plain: Any, dtype: torch.dtype) -> None:
    """Set the row's error and bound to those of the output that is nearest to its bound, or say which is beyond it."""
    log_det = 1 if row.op in HAVE_LOG_DET else None
    triples = list(zip(tensors(got), tensors(expected), tensors(plain), strict=True))
    nearest = -1.0
    for i, (g, e, p) in enumerate(triples):
        if g.shape != e.shape:
            row.refused = f"output {i} has shape {list(g.shape)}, expected {list(e.shape)}"
            return
        if g.numel() == 0:
            continue
        error = relative(g, e)
        # half precision: twice plain PyTorch's error in that dtype, at least one rounding; float32: a fixed bound
        bound = 1e-4 if dtype == torch.float32 else max(2 * relative(p, e), torch.finfo(dtype).eps)
        if i == log_det and dtype == torch.float32:  # a sum over channels and steps, whose terms may cancel
            terms = triples[0][1].numel() / e.numel()
            bound = max(bound, LOG_DET_TERM * terms / size(e))
        if not error / bound <= nearest:
            row.error, row.bound, nearest = error, bound, error / bound
        if not error <= bound:  # NaN too
            row.refused = f"output {i} is out of bounds"
            return
