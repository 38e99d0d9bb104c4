"""`invconv1x1` in Triton, forward and backward.

Up to C = 32, the weight stays in registers, padded to a power of two, and one launch does everything: log |det W| and
W^-T come from Gauss-Jordan elimination in the same registers. Wider weights go through a tiled matrix product; their
log-determinant and their inverse come from PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.invconv1x1 import reference
from fastflow.ops.triton_math import cast, dot
from fastflow.ops.triton_tiles import is_last, store, sum_partials

_IN_REGISTERS = 32  # the widest weight that is not tiled


def _sums(size: int) -> int:
    """Return how many programs sum over batch and time in the backward at the most; the last one adds their sums."""
    return 512 if size <= 8 else 4096 // size


@triton.jit
def load_weight(weight, stride_i, stride_j, C: tl.constexpr, SIZE: tl.constexpr):
    """Return the weight [SIZE, SIZE] in float32, the identity beyond C."""
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    inside = (i < C) & (j < C)
    w = tl.load(weight + i * stride_i + j * stride_j, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, w, tl.where(i == j, 1.0, 0.0))


@triton.jit
def eliminate(w, C: tl.constexpr, SIZE: tl.constexpr, INVERT: tl.constexpr):
    """Gauss-Jordan elimination of w [SIZE, SIZE] with partial pivoting, rows left where they are.

    Returns log |det w|, the inverse with its rows in the order of the pivots, and which row of the inverse each is.
    With INVERT false, only the first has a meaning.
    """
    rows = tl.arange(0, SIZE)
    order = tl.where(rows < C, -1, rows)  # the step in which a row was the pivot; -1 until then
    inverse = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0)
    log_det = 0.0
    for k in range(0, C):
        column = tl.sum(tl.where(rows[None, :] == k, w, 0.0), 1)
        size = tl.where(column == column, tl.abs(column), float("inf"))  # a NaN must not be passed over
        is_pivot = rows == tl.argmax(tl.where(order < 0, size, -1.0), 0)
        pivot = tl.sum(tl.where(is_pivot, column, 0.0), 0)
        pivot_row = tl.sum(tl.where(is_pivot[:, None], w, 0.0), 0)
        log_det += tl.log(tl.abs(pivot))
        if not INVERT:  # nothing but zeros is below a pivot of zero: the logarithm is minus infinity, and stays it
            pivot = tl.where(pivot == 0, 1.0, pivot)
        factor = tl.where(is_pivot, 0.0, column / pivot)[:, None]
        w -= factor * pivot_row[None, :]
        if INVERT:
            w = tl.where(is_pivot[:, None], pivot_row[None, :] / pivot, w)
            inverse_row = tl.sum(tl.where(is_pivot[:, None], inverse, 0.0), 0)[None, :]
            inverse = tl.where(is_pivot[:, None], inverse_row / pivot, inverse - factor * inverse_row)
        order = tl.where(is_pivot, k, order)
    return log_det, inverse, order


@triton.jit
def multiply(w, x, SIZE: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr):
    """Return w [SIZE, SIZE] (float32) times x [SIZE, BLOCK_T], in float32."""
    if SIZE <= 8:  # below the smallest matrix instruction
        y = tl.sum(w[:, :, None] * x.to(tl.float32)[None, :, :], 1)
    else:
        y = dot(cast(w, x.dtype), x, tl.zeros((SIZE, BLOCK_T), tl.float32), PRECISION)
    return y


@triton.jit
def invconv1x1_fwd_kernel(
    x,  # [B, C, T]
    weight,  # [C, C]
    mask,  # [B, T] or None
    y,  # [B, C, T]
    log_det,  # [B], or None
    partials,  # [B, tiles], or None without mask or log_det
    arrived,  # [B], zeros, or None without mask or log_det
    T,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_wi,
    stride_wj,
    stride_mb,
    stride_mt,
    C: tl.constexpr,
    SIZE: tl.constexpr,  # C rounded up to a power of two
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tiles = tl.cdiv(T, BLOCK_T)
    b = tl.program_id(0) // tiles
    p = tl.program_id(0) - b * tiles
    t0 = p * BLOCK_T
    c = tl.arange(0, SIZE)[:, None]
    t = tl.arange(0, BLOCK_T)
    in_t = t0 + t < T
    inside = (c < C) & in_t[None, :]
    w = load_weight(weight, stride_wi, stride_wj, C, SIZE)
    # [SIZE, BLOCK_T]
    x_tile = x + b.to(tl.int64) * stride_xb + t0.to(tl.int64) * stride_xt
    value = tl.load(x_tile + c * stride_xc + t[None, :] * stride_xt, mask=inside, other=0.0)
    value = multiply(w, value, SIZE, BLOCK_T, PRECISION)
    if mask is not None:
        mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
        m = tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)  # [BLOCK_T]
        value *= m[None, :]
    store(y + b.to(tl.int64) * C * T + t0 + c * T + t[None, :], value, inside)
    if log_det is not None:
        if mask is None:
            if p == 0:
                log, _, _ = eliminate(w, C, SIZE, False)
                tl.store(log_det + b, log * T)
        else:
            own = partials + b.to(tl.int64) * tiles
            tl.store(own + p, tl.sum(m, 0))
            if is_last(arrived + b, tiles):
                log, _, _ = eliminate(w, C, SIZE, False)
                tl.store(log_det + b, log * sum_partials(own, tiles))


@triton.jit
def invconv1x1_bwd_kernel(
    grad,  # [B, C, T]
    grad_log_det,  # [B], or None
    x,  # [B, C, T]
    weight,  # [C, C]
    mask,  # [B, T] or None
    grad_x,  # [B, C, T]
    grad_weight,  # [C, C]
    partials,  # [SUMS, SIZE * SIZE + 1]
    arrived,  # [1], zero
    B,
    T,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_d,  # of grad_log_det
    stride_xb,
    stride_xc,
    stride_xt,
    stride_wi,
    stride_wj,
    stride_mb,
    stride_mt,
    C: tl.constexpr,
    SIZE: tl.constexpr,  # C rounded up to a power of two
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tiles_t = tl.cdiv(T, BLOCK_T)
    tiles = B * tiles_t
    programs = tl.minimum(tiles, SUMS)
    p = tl.program_id(0)
    c = tl.arange(0, SIZE)[:, None]
    t = tl.arange(0, BLOCK_T)
    w_t = load_weight(weight, stride_wj, stride_wi, C, SIZE)
    # up to 8, one sum per step of the tile until the end
    products = tl.zeros((SIZE, SIZE, BLOCK_T) if SIZE <= 8 else (SIZE, SIZE), tl.float32)
    sum_log = 0.0  # of grad_log_det over all steps that count
    for tile in range(p, tiles, programs):
        b = tile // tiles_t
        t0 = (tile - b * tiles_t) * BLOCK_T
        in_t = t0 + t < T
        inside = (c < C) & in_t[None, :]
        # both [SIZE, BLOCK_T]
        g_tile = grad + b.to(tl.int64) * stride_gb + t0.to(tl.int64) * stride_gt
        g = tl.load(g_tile + c * stride_gc + t[None, :] * stride_gt, mask=inside, other=0.0)
        x_tile = x + b.to(tl.int64) * stride_xb + t0.to(tl.int64) * stride_xt
        value = tl.load(x_tile + c * stride_xc + t[None, :] * stride_xt, mask=inside, other=0.0)
        steps = tl.minimum(T - t0, BLOCK_T).to(tl.float32)
        if mask is not None:
            mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
            m = tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)  # [BLOCK_T]
            g = cast(g.to(tl.float32) * m[None, :], g.dtype)
            steps = tl.sum(m, 0)
        if grad_log_det is not None:
            sum_log += steps * tl.load(grad_log_det + b.to(tl.int64) * stride_d)
        g_x = multiply(w_t, g, SIZE, BLOCK_T, PRECISION)
        store(grad_x + b.to(tl.int64) * C * T + t0 + c * T + t[None, :], g_x, inside)
        if SIZE <= 8:
            products += g.to(tl.float32)[:, None, :] * value.to(tl.float32)[None, :, :]
        else:
            products = dot(g, tl.trans(value), products, PRECISION)
    if SIZE <= 8:
        products = tl.sum(products, 2)

    STRIDE: tl.constexpr = SIZE * SIZE + 1
    j = tl.arange(0, SIZE)[None, :]
    tl.store(partials + p * STRIDE + c * SIZE + j, products)
    tl.store(partials + p * STRIDE + SIZE * SIZE, sum_log)
    if is_last(arrived, programs):
        # The inverse comes with its rows in the order of the pivots: so do its transpose's columns, and the sums'.
        column = tl.arange(0, SIZE)
        if grad_log_det is not None:
            _, inverse, column = eliminate(tl.trans(w_t), C, SIZE, True)
        offsets = c * SIZE + column[None, :]  # [SIZE, SIZE]
        BLOCK: tl.constexpr = 32 if SIZE <= 8 else 4096 // (SIZE * SIZE)
        q = tl.arange(0, BLOCK)
        sums = tl.zeros((SIZE, SIZE), tl.float32)
        sum_log = 0.0
        for q0 in range(0, programs, BLOCK):
            given = q0 + q < programs
            own = partials + (q0 + q) * STRIDE
            sums += tl.sum(tl.load(own[:, None, None] + offsets[None, :, :], mask=given[:, None, None], other=0.0), 0)
            sum_log += tl.sum(tl.load(own + SIZE * SIZE, mask=given, other=0.0), 0)
        if grad_log_det is not None:
            sums += sum_log * tl.trans(inverse)
        inside = (c < C) & (column < C)[None, :]
        store(grad_weight + c * C + column[None, :], sums, inside)


@triton.jit
def invconv1x1_wide_fwd_kernel(
    x,  # [B, C, T]
    weight,  # [C, C]
    mask,  # [B, T] or None
    y,  # [B, C, T]
    T,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_wi,
    stride_wj,
    stride_mb,
    stride_mt,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks_c = tl.cdiv(C, BLOCK_C)  # they run fastest, so that tiles of x stay in the cache
    rest = tl.program_id(0) // blocks_c
    c0 = (tl.program_id(0) - rest * blocks_c) * BLOCK_C
    tiles_t = tl.cdiv(T, BLOCK_T)
    b = rest // tiles_t
    t0 = (rest - b * tiles_t) * BLOCK_T
    c = c0 + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, BLOCK_T)
    in_t = t0 + t < T
    x_tile = x + b.to(tl.int64) * stride_xb + t0.to(tl.int64) * stride_xt
    acc = tl.zeros((BLOCK_C, BLOCK_T), tl.float32)
    for k0 in range(0, C, BLOCK_K):
        in_k = k0 + k < C
        # w: [BLOCK_C, BLOCK_K], value: [BLOCK_K, BLOCK_T]
        w_tile = weight + c[:, None] * stride_wi + (k0 + k)[None, :] * stride_wj
        w = tl.load(w_tile, mask=(c < C)[:, None] & in_k[None, :], other=0.0)
        value_tile = x_tile + (k0 + k).to(tl.int64)[:, None] * stride_xc + t[None, :] * stride_xt
        value = tl.load(value_tile, mask=in_k[:, None] & in_t[None, :], other=0.0)
        acc = dot(cast(w.to(tl.float32), value.dtype), value, acc, PRECISION)
    if mask is not None:
        mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
        acc *= tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)[None, :]
    y_tile = y + (b.to(tl.int64) * C + c0) * T + t0
    inside = (c < C)[:, None] & in_t[None, :]
    store(y_tile + (c - c0)[:, None] * T + t[None, :], acc, inside)


@triton.jit
def invconv1x1_wide_bwd_weight_kernel(
    grad,  # [B, C, T]
    x,  # [B, C, T]
    mask,  # [B, T] or None
    grad_weight,  # [C, C], float32
    partials,  # [SUMS, C, C]
    arrived,  # [blocks of the weight], zeros
    B,
    T,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_mb,
    stride_mt,
    C: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tiles_t = tl.cdiv(T, BLOCK_T)
    tiles = B * tiles_t
    programs = tl.minimum(tiles, SUMS)  # for each block of the weight
    block = tl.program_id(0) // programs
    p = tl.program_id(0) - block * programs
    blocks_j = tl.cdiv(C, BLOCK_J)
    i = block // blocks_j * BLOCK_I + tl.arange(0, BLOCK_I)
    j = block % blocks_j * BLOCK_J + tl.arange(0, BLOCK_J)
    t = tl.arange(0, BLOCK_T)
    acc = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    for tile in range(p, tiles, programs):
        b = tile // tiles_t
        t0 = (tile - b * tiles_t) * BLOCK_T
        in_t = t0 + t < T
        # g: [BLOCK_I, BLOCK_T], value: [BLOCK_T, BLOCK_J]
        g_tile = grad + b.to(tl.int64) * stride_gb + t0.to(tl.int64) * stride_gt
        g_tile += i.to(tl.int64)[:, None] * stride_gc + t[None, :] * stride_gt
        g = tl.load(g_tile, mask=(i < C)[:, None] & in_t[None, :], other=0.0)
        if mask is not None:
            mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
            m = tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)  # [BLOCK_T]
            g = cast(g.to(tl.float32) * m[None, :], g.dtype)
        x_tile = x + b.to(tl.int64) * stride_xb + t0.to(tl.int64) * stride_xt
        x_tile += j.to(tl.int64)[None, :] * stride_xc + t[:, None] * stride_xt
        value = tl.load(x_tile, mask=in_t[:, None] & (j < C)[None, :], other=0.0)
        acc = dot(g, value, acc, PRECISION)
    offsets = i[:, None] * C + j[None, :]
    inside = (i < C)[:, None] & (j < C)[None, :]
    store(partials + p * C * C + offsets, acc, inside)
    if is_last(arrived + block, programs):
        acc = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
        for q0 in range(0, programs, 2):
            for k in tl.static_range(2):  # two loads under way
                q = q0 + tl.full((1, 1), k, tl.int32)
                acc += tl.load(partials + q * C * C + offsets, mask=inside & (q < programs), other=0.0)
        store(grad_weight + offsets, acc, inside)


def _mask_strides(mask: Tensor | None) -> tuple[int, int]:
    return (0, 0) if mask is None else (mask.stride(0), mask.stride(2))


def _wide_product(x: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    batch, channels, time = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        return (batch * triton.cdiv(channels, config["BLOCK_C"]) * triton.cdiv(time, config["BLOCK_T"]),)

    tuning.launch(
        invconv1x1_wide_fwd_kernel,
        grid,
        x,
        weight,
        mask,
        y,
        time,
        *x.stride(),
        *weight.stride(),
        *_mask_strides(mask),
        sizes={"C": channels},
        C=channels,
        PRECISION=tuning.precision(x.dtype),
    )
    return y


def _wide_weight_gradient(grad: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum of grad x^T [C, C] over batch and time in float32."""
    batch, channels, time = x.shape
    result = torch.empty(channels, channels, dtype=torch.float32, device=x.device)
    # Few where the weight itself has many blocks: about as many programs, and as much memory, at any width.
    sums = max(1, 128 // triton.cdiv(channels, 64) ** 2)
    partials = torch.empty(sums, channels, channels, dtype=torch.float32, device=x.device)
    arrived = torch.zeros(channels * channels, dtype=torch.int32, device=x.device)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        blocks = triton.cdiv(channels, config["BLOCK_I"]) * triton.cdiv(channels, config["BLOCK_J"])
        return (blocks * min(batch * triton.cdiv(time, config["BLOCK_T"]), sums),)

    tuning.launch(
        invconv1x1_wide_bwd_weight_kernel,
        grid,
        grad,
        x,
        mask,
        result,
        partials,
        arrived,
        batch,
        time,
        *grad.stride(),
        *x.stride(),
        *_mask_strides(mask),
        sizes={"C": channels},
        C=channels,
        SUMS=sums,
        PRECISION=tuning.precision(x.dtype),
    )
    return result


def invconv1x1(x: Tensor, weight: Tensor, mask: Tensor | None, log_det: bool) -> tuple[Tensor, Tensor]:
    batch, channels, time = x.shape
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros(batch if log_det else 0, dtype=torch.float32, device=x.device)
    if channels > _IN_REGISTERS:
        y = _wide_product(x, weight, mask)
        if not log_det:
            return y, torch.empty(0, dtype=torch.float32, device=x.device)
        return y, torch.linalg.slogdet(weight.float()).logabsdet * reference.steps(x, mask)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size = triton.next_power_of_2(channels)
    total = torch.empty(batch if log_det else 0, dtype=torch.float32, device=x.device)
    partials = arrived = None

    def tiles(config: dict[str, int]) -> int:
        count: int = triton.cdiv(time, config["BLOCK_T"])
        return count

    if log_det and mask is not None:
        partials = tuning.Workspace(
            lambda config: torch.empty(batch, tiles(config), dtype=torch.float32, device=x.device)
        )
        arrived = torch.zeros(batch, dtype=torch.int32, device=x.device)
    tuning.launch(
        invconv1x1_fwd_kernel,
        lambda config: (batch * tiles(config),),
        x,
        weight,
        mask,
        y,
        total if log_det else None,
        partials,
        arrived,
        time,
        *x.stride(),
        *weight.stride(),
        *_mask_strides(mask),
        sizes={"C": size},
        C=channels,
        SIZE=size,
        PRECISION=tuning.precision(x.dtype),
    )
    return y, total


def invconv1x1_backward(
    grad: Tensor, grad_log_det: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, log_det: bool
) -> list[Tensor]:
    batch, channels, time = x.shape
    if x.numel() == 0:
        return [torch.empty_like(x), torch.zeros_like(weight)]
    if channels > _IN_REGISTERS:
        grad_weight = _wide_weight_gradient(grad, x, mask)
        if log_det:
            inverse = torch.linalg.inv_ex(weight.float()).inverse
            grad_weight += (grad_log_det * reference.steps(x, mask)).sum() * inverse.t()
        return [_wide_product(grad, weight.t(), mask), grad_weight.to(weight.dtype)]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    size = triton.next_power_of_2(channels)
    sums = _sums(size)
    partials = torch.empty(sums, size * size + 1, dtype=torch.float32, device=x.device)
    arrived = torch.zeros(1, dtype=torch.int32, device=x.device)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        return (min(batch * triton.cdiv(time, config["BLOCK_T"]), sums),)

    tuning.launch(
        invconv1x1_bwd_kernel,
        grid,
        grad,
        grad_log_det if log_det else None,
        x,
        weight,
        mask,
        grad_x,
        grad_weight,
        partials,
        arrived,
        batch,
        time,
        *grad.stride(),
        *grad_log_det.stride(),
        *x.stride(),
        *weight.stride(),
        *_mask_strides(mask),
        sizes={"C": size},
        C=channels,
        SIZE=size,
        SUMS=sums,
        PRECISION=tuning.precision(x.dtype),
    )
    return [grad_x, grad_weight]


registry.implement("triton", "invconv1x1", invconv1x1)
registry.implement("triton", "invconv1x1_backward", invconv1x1_backward)
