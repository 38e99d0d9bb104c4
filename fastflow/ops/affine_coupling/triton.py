"""`affine_coupling` in Triton, forward and backward: one launch each, the log-determinant included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_math import log_sigmoid
from fastflow.ops.triton_tiles import at, is_last, rows, store, sum_partials, tile_origin


@triton.jit
def affine_coupling_fwd_kernel(
    x,  # [B, C, T]
    shift,  # [B, C, T]
    log_scale,  # [B, C, T], or None for "additive"
    mask,  # [B, T] or None
    y,  # [B, C, T]
    log_det,  # [B]
    partials,  # [B, tiles], or None for "additive"
    arrived,  # [B], zeros, or None for "additive"
    C,
    T,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_bb,
    stride_bc,
    stride_bt,
    stride_sb,
    stride_sc,
    stride_st,
    stride_mb,
    stride_mt,
    stride_yb,
    FORM: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, c0, t0 = tile_origin(tl.program_id(0), C, T, BLOCK_C, BLOCK_T)
    c = tl.arange(0, BLOCK_C)[:, None]
    t = tl.arange(0, BLOCK_T)[None, :]
    inside = (c0 + c < C) & (t0 + t < T)
    # all [BLOCK_C, BLOCK_T]
    x_tile = at(x, b, c0, t0, stride_xb, stride_xc, stride_xt)
    value = tl.load(x_tile + c * stride_xc + t * stride_xt, mask=inside, other=0.0).to(tl.float32)
    shift_tile = at(shift, b, c0, t0, stride_bb, stride_bc, stride_bt)
    add = tl.load(shift_tile + c * stride_bc + t * stride_bt, mask=inside, other=0.0).to(tl.float32)
    log = tl.zeros((BLOCK_C, BLOCK_T), tl.float32)
    if FORM != "additive":
        scale_tile = at(log_scale, b, c0, t0, stride_sb, stride_sc, stride_st)
        log = tl.load(scale_tile + c * stride_sc + t * stride_st, mask=inside, other=0.0).to(tl.float32)
    if FORM == "sigmoid":
        inverse = 1 + tl.exp(-(log + 2))  # 1 / sigmoid
        value = value * inverse - add if REVERSE else (value + add) / inverse
        log = log_sigmoid(log + 2)
    elif FORM == "exp":
        value = (value - add) * tl.exp(-log) if REVERSE else value * tl.exp(log) + add
    else:
        value = value - add if REVERSE else value + add
    if mask is not None:
        mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
        m = tl.load(mask_tile + t * stride_mt, mask=t0 + t < T, other=0.0).to(tl.float32)  # [1, BLOCK_T]
        value = value * m
        log = log * m
    store(at(y, b, c0, t0, stride_yb, T, 1) + c * T + t, value, inside)

    tiles = tl.cdiv(C, BLOCK_C) * tl.cdiv(T, BLOCK_T)
    p = tl.program_id(0) - b * tiles  # among the programs of this batch entry
    if FORM == "additive":
        if p == 0:
            tl.store(log_det + b, 0.0)
    else:
        total = tl.sum(tl.sum(tl.where(inside, log, 0.0), 1), 0)
        total = -total if REVERSE else total
        if tiles == 1:
            tl.store(log_det + b, total)
        else:
            own = partials + b.to(tl.int64) * tiles
            tl.store(own + p, total)
            if is_last(arrived + b, tiles):
                tl.store(log_det + b, sum_partials(own, tiles))


@triton.jit
def affine_coupling_bwd_kernel(
    grad,  # [B, C, T]
    grad_log_det,  # [B]
    x,  # [B, C, T]
    shift,  # [B, C, T]
    log_scale,  # [B, C, T], or None for "additive"
    mask,  # [B, T] or None
    grad_x,  # [B, C, T]
    grad_shift,  # [B, C, T]
    grad_log_scale,  # [B, C, T], or None for "additive"
    C,
    T,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_d,  # of grad_log_det
    stride_xb,
    stride_xc,
    stride_xt,
    stride_bb,
    stride_bc,
    stride_bt,
    stride_sb,
    stride_sc,
    stride_st,
    stride_mb,
    stride_mt,
    stride_yb,  # of the results
    FORM: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b, c0, t0 = tile_origin(tl.program_id(0), C, T, BLOCK_C, BLOCK_T)
    c = tl.arange(0, BLOCK_C)[:, None]
    t = tl.arange(0, BLOCK_T)[None, :]
    inside = (c0 + c < C) & (t0 + t < T)
    # all [BLOCK_C, BLOCK_T]
    g_tile = at(grad, b, c0, t0, stride_gb, stride_gc, stride_gt)
    g = tl.load(g_tile + c * stride_gc + t * stride_gt, mask=inside, other=0.0).to(tl.float32)
    g_log = tl.load(grad_log_det + b.to(tl.int64) * stride_d)
    if mask is not None:
        mask_tile = mask + b.to(tl.int64) * stride_mb + t0.to(tl.int64) * stride_mt
        m = tl.load(mask_tile + t * stride_mt, mask=t0 + t < T, other=0.0).to(tl.float32)  # [1, BLOCK_T]
        g = g * m
        g_log = g_log * m
    offsets = c * T + t
    grad_x_tile = at(grad_x, b, c0, t0, stride_yb, T, 1)
    grad_shift_tile = at(grad_shift, b, c0, t0, stride_yb, T, 1)
    if FORM == "additive":
        store(grad_x_tile + offsets, g, inside)
        store(grad_shift_tile + offsets, -g if REVERSE else g, inside)
    else:
        x_tile = at(x, b, c0, t0, stride_xb, stride_xc, stride_xt)
        value = tl.load(x_tile + c * stride_xc + t * stride_xt, mask=inside, other=0.0).to(tl.float32)
        shift_tile = at(shift, b, c0, t0, stride_bb, stride_bc, stride_bt)
        add = tl.load(shift_tile + c * stride_bc + t * stride_bt, mask=inside, other=0.0).to(tl.float32)
        scale_tile = at(log_scale, b, c0, t0, stride_sb, stride_sc, stride_st)
        s = tl.load(scale_tile + c * stride_sc + t * stride_st, mask=inside, other=0.0).to(tl.float32)
        if FORM == "exp":
            g_x = g * tl.exp(-s if REVERSE else s)
            g_shift = -g_x if REVERSE else g
            g_s = g_x * (value - add if REVERSE else value)
        else:
            inverse = 1 + tl.exp(-(s + 2))  # 1 / sigmoid
            g_x = g * inverse if REVERSE else g / inverse
            g_shift = -g if REVERSE else g_x
            g_s = g_x * (value if REVERSE else value + add)
        g_s = g_s + g_log
        if REVERSE:
            g_s = -g_s
        if FORM == "sigmoid":
            g_s = g_s * tl.sigmoid(-(s + 2))  # d log(sigmoid(s + 2)) / ds
        store(grad_x_tile + offsets, g_x, inside)
        store(grad_shift_tile + offsets, g_shift, inside)
        store(at(grad_log_scale, b, c0, t0, stride_yb, T, 1) + offsets, g_s, inside)


_NO_STRIDES = (0, 0, 0)


def affine_coupling(
    x: Tensor, shift: Tensor, log_scale: Tensor | None, mask: Tensor | None, form: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    batch = x.shape[0]
    if y.numel() == 0:
        return y, torch.zeros(batch, dtype=torch.float32, device=x.device)
    log_det = torch.empty(batch, dtype=torch.float32, device=x.device)
    given = [x, shift] if log_scale is None else [x, shift, log_scale]
    channels, time, strides = rows(*given, separate=mask is not None)

    def tiles(config: dict[str, int]) -> int:
        count: int = triton.cdiv(channels, config["BLOCK_C"]) * triton.cdiv(time, config["BLOCK_T"])
        return count

    partials = arrived = None
    if log_scale is not None:
        partials = tuning.Workspace(
            lambda config: torch.empty(batch, tiles(config), dtype=torch.float32, device=x.device)
        )
        arrived = torch.zeros(batch, dtype=torch.int32, device=x.device)
    tuning.launch(
        affine_coupling_fwd_kernel,
        lambda config: (batch * tiles(config),),
        x,
        shift,
        log_scale,
        mask,
        y,
        log_det,
        partials,
        arrived,
        channels,
        time,
        *strides[0],
        *strides[1],
        *(_NO_STRIDES if log_scale is None else strides[2]),
        *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        x.shape[1] * x.shape[2],
        sizes={"C": channels},
        FORM=form,
        REVERSE=reverse,
    )
    return y, log_det


def affine_coupling_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None,
    mask: Tensor | None,
    form: str,
    reverse: bool,
) -> list[Tensor]:
    grad_x, grad_shift = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    grad_log_scale = None if log_scale is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    results = [grad_x, grad_shift, x.new_empty(0) if grad_log_scale is None else grad_log_scale]
    if x.numel() == 0:
        return results
    given = [grad, x, shift] if log_scale is None else [grad, x, shift, log_scale]
    channels, time, strides = rows(*given, separate=mask is not None)

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        return (x.shape[0] * triton.cdiv(channels, config["BLOCK_C"]) * triton.cdiv(time, config["BLOCK_T"]),)

    tuning.launch(
        affine_coupling_bwd_kernel,
        grid,
        grad,
        grad_log_det,
        x,
        shift,
        log_scale,
        mask,
        grad_x,
        grad_shift,
        grad_log_scale,
        channels,
        time,
        *strides[0],
        grad_log_det.stride(0),
        *strides[1],
        *strides[2],
        *(_NO_STRIDES if log_scale is None else strides[3]),
        *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
        x.shape[1] * x.shape[2],
        sizes={"C": channels},
        FORM=form,
        REVERSE=reverse,
    )
    return results


registry.implement("triton", "affine_coupling", affine_coupling)
registry.implement("triton", "affine_coupling_backward", affine_coupling_backward)
