"""A kernel whose tile does not fit into the registers of its threads."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spilling_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + i[None, :])
    b = tl.dot(a, a)
    c = tl.dot(b.to(a.dtype), a)
    tl.store(y + i[:, None] * N + i[None, :], (tl.sum(b, 0)[None, :] + c) * b + c)


@triton.jit
def fitting_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(y + i[:, None] * N + i[None, :], tl.dot(a, a))
