"""`gate` in Triton, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_math import gate as gated
from fastflow.ops.triton_math import tanh_and_sigmoid
from fastflow.ops.triton_tiles import at, rows, store, tile_origin


# T is specialised on its divisibility by 16 in every kernel of this kind: else a mask on it ends all vector accesses.
@triton.jit
def gate_fwd_kernel(
    x,  # [B, G, T], the first half
    x2,  # [B, G, T], the second half
    y,  # [B, G, T]
    G,
    T,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_yb,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, c0, t0 = tile_origin(tl.program_id(0), G, T, BLOCK_C, BLOCK_T)
    c = tl.arange(0, BLOCK_C)[:, None]
    t = tl.arange(0, BLOCK_T)[None, :]
    inside = (c0 + c < G) & (t0 + t < T)
    offsets = c * stride_xc + t * stride_xt
    # both [BLOCK_C, BLOCK_T]
    first = tl.load(at(x, b, c0, t0, stride_xb, stride_xc, stride_xt) + offsets, mask=inside, other=0.0)
    second = tl.load(at(x2, b, c0, t0, stride_xb, stride_xc, stride_xt) + offsets, mask=inside, other=0.0)
    result = gated(first.to(tl.float32), second.to(tl.float32), y.dtype.element_ty)
    y_tile = at(y, b, c0, t0, stride_yb, T, 1)
    tl.store(y_tile + c * T + t, result, mask=inside)


@triton.jit
def gate_bwd_kernel(
    grad,  # [B, G, T]
    x,  # [B, G, T], the first half
    x2,  # [B, G, T], the second half
    grad_x,  # [B, G, T], the first half of [B, 2G, T]
    grad_x2,  # [B, G, T], the second half
    G,
    T,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_yb,  # of grad_x
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, c0, t0 = tile_origin(tl.program_id(0), G, T, BLOCK_C, BLOCK_T)
    c = tl.arange(0, BLOCK_C)[:, None]
    t = tl.arange(0, BLOCK_T)[None, :]
    inside = (c0 + c < G) & (t0 + t < T)
    offsets = c * stride_xc + t * stride_xt
    # all [BLOCK_C, BLOCK_T]
    g_tile = at(grad, b, c0, t0, stride_gb, stride_gc, stride_gt)
    g = tl.load(g_tile + c * stride_gc + t * stride_gt, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(at(x, b, c0, t0, stride_xb, stride_xc, stride_xt) + offsets, mask=inside, other=0.0)
    second = tl.load(at(x2, b, c0, t0, stride_xb, stride_xc, stride_xt) + offsets, mask=inside, other=0.0)
    a, s = tanh_and_sigmoid(first.to(tl.float32), second.to(tl.float32), x.dtype.element_ty)
    offsets = c * T + t
    store(at(grad_x, b, c0, t0, stride_yb, T, 1) + offsets, g * (1 - a * a) * s, inside)
    store(at(grad_x2, b, c0, t0, stride_yb, T, 1) + offsets, g * a * (1 - s) * s, inside)


def _grid(batch: int, channels: int, time: int) -> Any:
    return lambda config: (batch * triton.cdiv(channels, config["BLOCK_C"]) * triton.cdiv(time, config["BLOCK_T"]),)


def gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    y = torch.empty(first.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    channels, time, (strides,) = rows(first)
    grid = _grid(x.shape[0], channels, time)
    stride = y.shape[1] * y.shape[2]
    tuning.launch(gate_fwd_kernel, grid, first, second, y, channels, time, *strides, stride, sizes={"C": channels})
    return y


def gate_backward(grad: Tensor, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if grad_x.numel() == 0:
        return grad_x
    grad_first, grad_second = grad_x.chunk(2, 1)
    channels, time, (grad_strides, strides) = rows(grad, first)
    tuning.launch(
        gate_bwd_kernel,
        _grid(x.shape[0], channels, time),
        grad,
        first,
        second,
        grad_first,
        grad_second,
        channels,
        time,
        *grad_strides,
        *strides,
        x.shape[1] * x.shape[2],
        sizes={"C": channels},
    )
    return grad_x


registry.implement("triton", "gate", gate)
registry.implement("triton", "gate_backward", gate_backward)
