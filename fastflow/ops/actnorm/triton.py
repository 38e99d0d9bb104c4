"""`actnorm` in Triton, forward and backward: one launch each, log-determinant and sums over batch and time included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_tiles import at, is_last, store, sum_partials, tile_origin

# Programs per block of channels in the backward at the most: a few for every multiprocessor of the largest devices.
_SUMS = 512


@triton.jit
def log_abs_sum(scale, C, BLOCK: tl.constexpr):
    """Return the sum of log |scale| over the channels."""
    c = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for c0 in range(0, C, BLOCK):
        s = tl.load(scale + c0 + c, mask=c0 + c < C, other=1.0).to(tl.float32)
        total += tl.log(tl.abs(s))
    return tl.sum(total, 0)


@triton.jit
def actnorm_fwd_kernel(
    x,  # [B, C, T]
    loc,  # [C]
    scale,  # [C]
    mask,  # [B, T] or None
    y,  # [B, C, T]
    log_det,  # [B]
    partials,  # [B, tiles along T], or None without mask
    arrived,  # [B], zeros, or None without mask
    C,
    T,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_mb,
    stride_mt,
    REVERSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, c0, t0 = tile_origin(tl.program_id(0), C, T, BLOCK_C, BLOCK_T)
    c = tl.arange(0, BLOCK_C)
    t = tl.arange(0, BLOCK_T)
    in_c = c0 + c < C
    in_t = t0 + t < T
    inside = in_c[:, None] & in_t[None, :]
    add = tl.load(loc + c0 + c, mask=in_c, other=0.0).to(tl.float32)[:, None]
    factor = tl.load(scale + c0 + c, mask=in_c, other=1.0).to(tl.float32)[:, None]
    # [BLOCK_C, BLOCK_T]
    x_tile = at(x, b, c0, t0, stride_xb, stride_xc, stride_xt)
    value = tl.load(x_tile + c[:, None] * stride_xc + t[None, :] * stride_xt, mask=inside, other=0.0).to(tl.float32)
    value = value / factor - add if REVERSE else factor * (value + add)
    if mask is not None:
        mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
        m = tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)  # [BLOCK_T]
        value = value * m[None, :]
    y_tile = y + (b.to(tl.int64) * C + c0) * T + t0
    store(y_tile + c[:, None] * T + t[None, :], value, inside)

    if c0 == 0:  # these programs count the steps
        if mask is None:
            if t0 == 0:
                total = log_abs_sum(scale, C, 128) * T
                tl.store(log_det + b, -total if REVERSE else total)
        else:
            tiles = tl.cdiv(T, BLOCK_T)
            own = partials + b.to(tl.int64) * tiles
            tl.store(own + t0 // BLOCK_T, tl.sum(m, 0))
            if is_last(arrived + b, tiles):
                total = log_abs_sum(scale, C, 128) * sum_partials(own, tiles)
                tl.store(log_det + b, -total if REVERSE else total)


@triton.jit
def actnorm_bwd_kernel(
    grad,  # [B, C, T]
    grad_log_det,  # [B]
    x,  # [B, C, T]
    loc,  # [C]
    scale,  # [C]
    mask,  # [B, T] or None
    grad_x,  # [B, C, T]
    grad_loc,  # [C]
    grad_scale,  # [C]
    partials,  # [2C + blocks of channels, SUMS]: of every channel's grad, of grad * x, of grad_log_det
    arrived,  # [blocks of channels], zeros
    B,
    C,
    T,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_d,  # of grad_log_det
    stride_xb,
    stride_xc,
    stride_xt,
    stride_mb,
    stride_mt,
    SUMS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tiles_t = tl.cdiv(T, BLOCK_T)
    tiles = B * tiles_t
    programs = tl.minimum(tiles, SUMS)  # for each block of channels
    block = tl.program_id(0) // programs
    p = tl.program_id(0) - block * programs
    c0 = block * BLOCK_C
    c = tl.arange(0, BLOCK_C)
    t = tl.arange(0, BLOCK_T)
    in_c = c0 + c < C
    add = tl.load(loc + c0 + c, mask=in_c, other=0.0).to(tl.float32)
    factor = tl.load(scale + c0 + c, mask=in_c, other=1.0).to(tl.float32)
    sum_g = tl.zeros((BLOCK_C,), tl.float32)  # of grad
    sum_gx = tl.zeros((BLOCK_C,), tl.float32)  # of grad * (x + loc); in reverse, of grad * x
    sum_log = 0.0  # of grad_log_det over all steps that count
    for tile in range(p, tiles, programs):
        b = tile // tiles_t
        t0 = (tile - b * tiles_t) * BLOCK_T
        in_t = t0 + t < T
        inside = in_c[:, None] & in_t[None, :]
        # both [BLOCK_C, BLOCK_T]
        g_tile = at(grad, b, c0, t0, stride_gb, stride_gc, stride_gt)
        g = tl.load(g_tile + c[:, None] * stride_gc + t[None, :] * stride_gt, mask=inside, other=0.0).to(tl.float32)
        x_tile = at(x, b, c0, t0, stride_xb, stride_xc, stride_xt)
        value = tl.load(x_tile + c[:, None] * stride_xc + t[None, :] * stride_xt, mask=inside, other=0.0)
        value = value.to(tl.float32)
        g_log = tl.load(grad_log_det + b.to(tl.int64) * stride_d)
        if mask is not None:
            mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
            m = tl.load(mask_tile + t * stride_mt, mask=in_t, other=0.0).to(tl.float32)  # [BLOCK_T]
            g = g * m[None, :]
            sum_log += g_log * tl.sum(m, 0)
        else:
            sum_log += g_log * tl.minimum(T - t0, BLOCK_T)
        sum_g += tl.sum(g, 1)
        sum_gx += tl.sum(g * (value if REVERSE else value + add[:, None]), 1)
        grad_x_tile = grad_x + (b.to(tl.int64) * C + c0) * T + t0
        g_x = g / factor[:, None] if REVERSE else g * factor[:, None]
        store(grad_x_tile + c[:, None] * T + t[None, :], g_x, inside)

    rows = (c0 + c)[:, None] * SUMS
    tl.store(partials + rows + p, sum_g[:, None], mask=in_c[:, None])
    tl.store(partials + C * SUMS + rows + p, sum_gx[:, None], mask=in_c[:, None])
    logs = partials + (2 * C + block) * SUMS
    tl.store(logs + p, sum_log)
    if is_last(arrived + block, programs):
        sum_g = tl.zeros((BLOCK_C,), tl.float32)
        sum_gx = tl.zeros((BLOCK_C,), tl.float32)
        sum_log = 0.0
        BLOCK: tl.constexpr = max(16, 1024 // BLOCK_C)
        q = tl.arange(0, BLOCK)
        for q0 in range(0, programs, BLOCK):
            given = q0 + q < programs
            taken = in_c[:, None] & given[None, :]
            columns = rows + (q0 + q)[None, :]  # [BLOCK_C, BLOCK]
            sum_g += tl.sum(tl.load(partials + columns, mask=taken, other=0.0), 1)
            sum_gx += tl.sum(tl.load(partials + C * SUMS + columns, mask=taken, other=0.0), 1)
            sum_log += tl.sum(tl.load(logs + q0 + q, mask=given, other=0.0), 0)
        g_loc = -sum_g if REVERSE else sum_g * factor
        g_scale = -(sum_gx / factor + sum_log) / factor if REVERSE else sum_gx + sum_log / factor
        store(grad_loc + c0 + c, g_loc, in_c)
        store(grad_scale + c0 + c, g_scale, in_c)


def actnorm(x: Tensor, loc: Tensor, scale: Tensor, mask: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    batch, channels, time = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, torch.zeros(batch, dtype=torch.float32, device=x.device)
    log_det = torch.empty(batch, dtype=torch.float32, device=x.device)
    partials = arrived = None
    if mask is not None:
        partials = tuning.Workspace(
            lambda config: torch.empty(
                batch, triton.cdiv(time, config["BLOCK_T"]), dtype=torch.float32, device=x.device
            )
        )
        arrived = torch.zeros(batch, dtype=torch.int32, device=x.device)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        return (batch * triton.cdiv(channels, config["BLOCK_C"]) * triton.cdiv(time, config["BLOCK_T"]),)

    tuning.launch(
        actnorm_fwd_kernel,
        grid,
        x,
        loc.contiguous(),
        scale.contiguous(),
        mask,
        y,
        log_det,
        partials,
        arrived,
        channels,
        time,
        *x.stride(),
        *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        sizes={"C": channels},
        REVERSE=reverse,
    )
    return y, log_det


def actnorm_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    batch, channels, time = x.shape
    if x.numel() == 0:
        return [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in (x, loc, scale)]
    grad_x, grad_loc, grad_scale = (torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (x, loc, scale))
    # there are at most as many blocks as channels
    partials = torch.empty(3 * channels, _SUMS, dtype=torch.float32, device=x.device)
    arrived = torch.zeros(channels, dtype=torch.int32, device=x.device)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        tiles = batch * triton.cdiv(time, config["BLOCK_T"])
        return (triton.cdiv(channels, config["BLOCK_C"]) * min(tiles, _SUMS),)

    tuning.launch(
        actnorm_bwd_kernel,
        grid,
        grad,
        grad_log_det,
        x,
        loc.contiguous(),
        scale.contiguous(),
        mask,
        grad_x,
        grad_loc,
        grad_scale,
        partials,
        arrived,
        batch,
        channels,
        time,
        *grad.stride(),
        grad_log_det.stride(0),
        *x.stride(),
        *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        sizes={"C": channels},
        SUMS=_SUMS,
        REVERSE=reverse,
    )
    return [grad_x, grad_loc, grad_scale]


registry.implement("triton", "actnorm", actnorm)
registry.implement("triton", "actnorm_backward", actnorm_backward)
