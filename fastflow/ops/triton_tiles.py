"""What the kernels on tiles [BLOCK_C, BLOCK_T] of [B, C, T] tensors share: where tiles lie, and sums over programs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops.triton_math import cast


@triton.jit
def tile_origin(tile, C, T, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the batch entry, the first channel and the first step of a tile; time runs fastest."""
    tiles_t = tl.cdiv(T, BLOCK_T)
    tiles_c = tl.cdiv(C, BLOCK_C)
    rest = tile // tiles_t
    t0 = (tile - rest * tiles_t) * BLOCK_T
    b = rest // tiles_c
    c0 = (rest - b * tiles_c) * BLOCK_C
    return b, c0, t0


@triton.jit
def at(x, b, c0, t0, stride_b, stride_c, stride_t):
    """Return the pointer to x[b, c0, t0], by 64-bit arithmetic."""
    return x + b.to(tl.int64) * stride_b + c0.to(tl.int64) * stride_c + t0.to(tl.int64) * stride_t


@triton.jit
def store(pointers, values, inside):
    """Store float32 values where `inside` is true, rounded to what the pointers point to."""
    tl.store(pointers, cast(values, pointers.dtype.element_ty), mask=inside)


@triton.jit
def is_last(arrived, programs):
    """Count this program in; whether it is the last of `programs`. It then sees what all of them have stored before."""
    tl.debug_barrier()  # every thread's stores come before the count
    return tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1


@triton.jit
def sum_partials(partials, count):
    """Return the sum of `count` values, always added in the same order."""
    i = tl.arange(0, 1024)
    total = tl.zeros((1024,), tl.float32)
    for i0 in range(0, count, 1024):
        total += tl.load(partials + i0 + i, mask=i0 + i < count, other=0.0)
    return tl.sum(total, 0)


def flat_stride(x: Tensor) -> int | None:
    """Return the stride of x [B, C, T] seen as [B, C * T], or None where it cannot be seen so."""
    channels, time = x.shape[1], x.shape[2]
    if time == 1:
        return x.stride(1)
    if channels == 1 or x.stride(1) == time * x.stride(2):
        return x.stride(2)
    return None


def rows(*tensors: Tensor, separate: bool = False) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Return C, T and everyone's strides for an operation that treats all channels and steps of [B, C, T] alike.

    Where memory allows it, that is one channel of C * T steps: no tile is cut short by a small T, and alignment does
    not end with the first row. `separate` keeps the rows apart, for an operation with a mask.
    """
    channels, time = tensors[0].shape[1], tensors[0].shape[2]
    flat = [flat_stride(x) for x in tensors]
    if not separate and channels * time < 1 << 30 and all(stride is not None for stride in flat):
        return 1, channels * time, [(x.stride(0), 0, stride or 0) for x, stride in zip(tensors, flat, strict=True)]
    return channels, time, [(x.stride(0), x.stride(1), x.stride(2)) for x in tensors]
