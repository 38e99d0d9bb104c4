"""Triton kernels of `flow_step`: one launch forward, one backward.

A program takes BLOCK_T time steps of one batch item and has all channels of them in registers, as a tile of 2 * HALF
columns in which the halves alternate: column 2j is channel j of the kept half (or the shift of j), column 2j + 1 is
channel j of the moved half (its log scale). `tl.split` and `tl.join` then pass from halves to the tile and back without
leaving the registers, and the end convolution and the 1x1 convolution are one dot each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_math import INTERPRETED, cast, dot, log_sigmoid
from fastflow.ops.triton_tiles import is_last

AT_ONCE = tl.constexpr(8 if INTERPRETED.value else 1024)  # partial sums that the last program adds at once

# T is specialised like the strides, on whether 16 divides it: where time is contiguous in memory, vectors of steps are
# loaded and stored only if the mask at the end of the tile is known not to cut them.


@triton.jit
def _columns(HALF: tl.constexpr, HALF_C: tl.constexpr, TRANSFORM_FIRST: tl.constexpr):
    """Return for each column of a tile its row of the end convolution, its channel, and whether there is such a one."""
    column = tl.arange(0, 2 * HALF)
    j = column // 2
    moved = column % 2
    row = j + moved * HALF_C
    channel = j + (1 - moved if TRANSFORM_FIRST else moved) * HALF_C
    return row, channel, j < HALF_C


@triton.jit
def _end(
    hidden,  # [BLOCK_T, S], the tile's first element
    h_s,
    h_t,
    end_weight,  # [ROWS, S]
    end_bias,  # [ROWS]
    i,
    valid,
    row,
    has_row,
    S: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return shift and log scale, both [BLOCK_T, HALF] in float32; zero where there is no such row."""
    acc = tl.zeros((BLOCK_T, 2 * HALF), tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        # [BLOCK_T, BLOCK_S]
        h = tl.load(
            hidden + s.to(tl.int64)[None, :] * h_s + i[:, None] * h_t, valid[:, None] & (s < S)[None, :], other=0.0
        )
        # [BLOCK_S, 2 * HALF]
        w = tl.load(end_weight + row[None, :] * S + s[:, None], (s < S)[:, None] & has_row[None, :], other=0.0)
        acc = dot(h, w, acc, PRECISION)
    if HAS_BIAS:
        acc += tl.load(end_bias + row, has_row, other=0.0).to(tl.float32)[None, :]
    return tl.split(tl.reshape(acc, (BLOCK_T, HALF, 2)))


@triton.jit
def _couple(moved, shift, log_scale, FORM: tl.constexpr, REVERSE: tl.constexpr):
    """Return the transformed half and its log scale."""
    if FORM == "additive":
        return moved - shift if REVERSE else moved + shift, log_scale
    elif FORM == "exp":
        s = log_scale
        return (moved - shift) * tl.exp(-s) if REVERSE else tl.exp(s) * moved + shift, s
    else:
        s = log_sigmoid(log_scale + 2)
        return moved * tl.exp(-s) - shift if REVERSE else (moved + shift) * tl.exp(s), s


@triton.jit
def _interleaved(even, odd, BLOCK_T: tl.constexpr, HALF: tl.constexpr):
    """Return the tile [BLOCK_T, 2 * HALF] of two halves."""
    return tl.reshape(tl.join(even, odd), (BLOCK_T, 2 * HALF))


@triton.jit
def flow_step_fwd_kernel(
    hidden,  # [B, S, T]
    x,  # [B, C, T]
    end_weight,  # [ROWS, S]
    end_bias,  # [ROWS]
    weight,  # [M, M], M = C - N_EARLY
    early,  # [B, E, T]
    y,  # [B, E + C, T]
    log_det,  # [B]
    partials,  # [B, tiles]: each program's sum of log scales
    arrived,  # [B] zeros: how many of the item's programs have stored theirs
    T,
    h_b,
    h_s,
    h_t,
    x_b,
    x_c,
    x_t,
    e_b,
    e_c,
    e_t,
    C: tl.constexpr,
    S: tl.constexpr,
    E: tl.constexpr,
    N_EARLY: tl.constexpr,
    FORM: tl.constexpr,
    TRANSFORM_FIRST: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    LOG_DET: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tile, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = tile.to(tl.int64) * BLOCK_T
    i = tl.arange(0, BLOCK_T)
    valid = i < T - first
    row, channel, real = _columns(HALF, C // 2, TRANSFORM_FIRST)
    has_row = real & (row < C // 2) if FORM == "additive" else real
    shift, log_scale = _end(
        hidden + b * h_b + first * h_t,
        h_s,
        h_t,
        end_weight,
        end_bias,
        i,
        valid,
        row,
        has_row,
        S,
        HAS_BIAS,
        HALF,
        BLOCK_T,
        BLOCK_S,
        PRECISION,
    )
    inside = valid[:, None] & real[None, :]
    # [BLOCK_T, 2 * HALF]
    z = tl.load(x + b * x_b + first * x_t + i[:, None] * x_t + channel[None, :] * x_c, inside, other=0.0)
    kept, moved = tl.split(tl.reshape(z.to(tl.float32), (BLOCK_T, HALF, 2)))
    moved, s = _couple(moved, shift, log_scale, FORM, REVERSE)
    z = cast(_interleaved(kept, moved, BLOCK_T, HALF), y.dtype.element_ty)

    # [E + C, T] of this item, from the tile's first step
    out = y + b * (E + C) * T + first
    if E > 0:
        for e in tl.static_range(E):
            joining = tl.load(early + b * e_b + first * e_t + e * e_c + i * e_t, valid)
            tl.store(out + tl.full((), e, tl.int64) * T + i, joining, valid)
    if HAS_WEIGHT:
        M: tl.constexpr = C - N_EARLY
        o = tl.arange(0, 2 * HALF)
        stays = real & (channel >= N_EARLY)
        if N_EARLY > 0:
            tl.store(out + i[:, None] + channel.to(tl.int64)[None, :] * T, z, inside & (channel < N_EARLY)[None, :])
            z = tl.where(stays[None, :], z, 0.0)
        # [2 * HALF, 2 * HALF], the transposed weight: column of z -> channel of y
        w = tl.load(
            weight + o[None, :] * M + (channel - N_EARLY)[:, None], stays[:, None] & (o < M)[None, :], other=0.0
        )
        product = dot(z, w, tl.zeros((BLOCK_T, 2 * HALF), tl.float32), PRECISION)
        tl.store(
            out + i[:, None] + (E + N_EARLY + o).to(tl.int64)[None, :] * T,
            cast(product, y.dtype.element_ty),
            valid[:, None] & (o < M)[None, :],
        )
    else:
        tl.store(out + i[:, None] + (E + channel).to(tl.int64)[None, :] * T, z, inside)

    if LOG_DET:
        j = tl.arange(0, HALF)
        counted = tl.where(valid[:, None] & (j < C // 2)[None, :], s, 0.0)
        tiles = tl.num_programs(0)
        tl.store(partials + b * tiles + tile, tl.sum(tl.sum(counted, 1), 0))
        # whoever comes last adds them up, in an order that does not depend on who that is
        if is_last(arrived + b, tiles):
            sums = tl.zeros((AT_ONCE,), tl.float32)
            k = tl.arange(0, AT_ONCE)
            start = 0
            while start < tiles:
                sums += tl.load(partials + b * tiles + start + k, start + k < tiles, other=0.0, cache_modifier=".cg")
                start += AT_ONCE
            total = tl.sum(sums, 0)
            tl.store(log_det + b, -total if REVERSE else total)


@triton.jit
def flow_step_bwd_kernel(
    hidden,  # [B, S, T]
    x,  # [B, C, T]
    end_weight,  # [ROWS, S]
    end_bias,  # [ROWS]
    weight,  # [M, M], M = C - N_EARLY
    grad,  # [B, E + C, T]
    grad_log_det,  # [B]
    grad_x,  # [B, C, T]
    grad_hidden,  # [B, S, T]
    grad_early,  # [B, E, T]
    partials,  # [programs, ROWS * S + ROWS + M * M]: each program's part of the gradients of the weights
    T,
    h_b,
    h_s,
    h_t,
    x_b,
    x_c,
    x_t,
    g_b,
    g_c,
    g_t,
    gh_b,
    gh_s,
    gh_t,
    C: tl.constexpr,
    S: tl.constexpr,
    E: tl.constexpr,
    N_EARLY: tl.constexpr,
    FORM: tl.constexpr,
    TRANSFORM_FIRST: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    LOG_DET: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    tile, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = tile.to(tl.int64) * BLOCK_T
    i = tl.arange(0, BLOCK_T)
    valid = i < T - first
    row, channel, real = _columns(HALF, C // 2, TRANSFORM_FIRST)
    has_row = real & (row < C // 2) if FORM == "additive" else real
    ROWS: tl.constexpr = C // 2 if FORM == "additive" else C
    M: tl.constexpr = C - N_EARLY if HAS_WEIGHT else 0
    inside = valid[:, None] & real[None, :]
    partials += (b * tl.num_programs(0) + tile) * (ROWS * S + (ROWS if HAS_BIAS else 0) + M * M)

    # the coupling's inputs once more
    shift, log_scale = _end(
        hidden + b * h_b + first * h_t,
        h_s,
        h_t,
        end_weight,
        end_bias,
        i,
        valid,
        row,
        has_row,
        S,
        HAS_BIAS,
        HALF,
        BLOCK_T,
        BLOCK_S,
        PRECISION,
    )
    # [BLOCK_T, 2 * HALF]
    z = tl.load(x + b * x_b + first * x_t + i[:, None] * x_t + channel[None, :] * x_c, inside, other=0.0)
    kept, moved = tl.split(tl.reshape(z.to(tl.float32), (BLOCK_T, HALF, 2)))

    # through the early outputs and the 1x1 convolution
    g = grad + b * g_b + first * g_t  # [E + C, T] of this item, from the tile's first step
    for e in tl.static_range(E):
        tl.store(grad_early + (b * E + e) * T + first + i, tl.load(g + e * g_c + i * g_t, valid, other=0.0), valid)
    if HAS_WEIGHT:
        o = tl.arange(0, 2 * HALF)
        # [BLOCK_T, 2 * HALF], the gradient of the product, by channels of y
        go = tl.load(
            g + i[:, None] * g_t + (E + N_EARLY + o)[None, :] * g_c, valid[:, None] & (o < M)[None, :], other=0.0
        )
        stays = real & (channel >= N_EARLY)
        # [2 * HALF, 2 * HALF]: channel of y -> column of z
        place = o[:, None] * M + (channel - N_EARLY)[None, :]
        within = (o < M)[:, None] & stays[None, :]
        w = tl.load(weight + place, within, other=0.0)
        gz = dot(go, w, tl.zeros((BLOCK_T, 2 * HALF), tl.float32), PRECISION)
        if N_EARLY > 0:
            leaving = inside & (channel < N_EARLY)[None, :]
            gz += tl.load(g + i[:, None] * g_t + channel[None, :] * g_c, leaving, other=0.0).to(tl.float32)
        moved_on, _ = _couple(moved, shift, log_scale, FORM, REVERSE)
        z = cast(_interleaved(kept, moved_on, BLOCK_T, HALF), grad.dtype.element_ty)
        gw = dot(tl.trans(go), z, tl.zeros((2 * HALF, 2 * HALF), tl.float32), PRECISION)
        tl.store(partials + ROWS * S + (ROWS if HAS_BIAS else 0) + place, gw, within)
    else:
        gz = tl.load(g + i[:, None] * g_t + (E + channel)[None, :] * g_c, inside, other=0.0).to(tl.float32)

    # through the coupling
    g_kept, g_moved = tl.split(tl.reshape(gz, (BLOCK_T, HALF, 2)))
    gl = tl.load(grad_log_det + b).to(tl.float32) if LOG_DET else 0.0
    if FORM == "additive":
        g_shift = -g_moved if REVERSE else g_moved
        g_scale = tl.zeros_like(g_shift)
    else:
        s = log_scale if FORM == "exp" else log_sigmoid(log_scale + 2)
        scale = tl.exp(-s if REVERSE else s)
        scaled = moved * scale  # the part of y that s multiplies
        g_in = g_moved * scale
        if FORM == "exp":
            if REVERSE:
                scaled -= shift * scale
            g_shift = -g_in if REVERSE else g_moved
        else:
            if not REVERSE:
                scaled += shift * scale
            g_shift = -g_moved if REVERSE else g_in
        g_scale = g_moved * scaled + gl
        if REVERSE:
            g_scale = -g_scale
        if FORM == "sigmoid":
            g_scale *= tl.sigmoid(-(log_scale + 2))
        g_moved = g_in
    gx = _interleaved(g_kept, g_moved, BLOCK_T, HALF)
    tl.store(
        grad_x + b * C * T + first + i[:, None] + channel.to(tl.int64)[None, :] * T,
        cast(gx, grad_x.dtype.element_ty),
        inside,
    )

    # through the end convolution
    go_end = tl.where(valid[:, None] & has_row[None, :], _interleaved(g_shift, g_scale, BLOCK_T, HALF), 0.0)
    if HAS_BIAS:
        tl.store(partials + ROWS * S + row, tl.sum(go_end, 0), has_row)
    go_end = cast(go_end, hidden.dtype.element_ty)
    h_tile = hidden + b * h_b + first * h_t
    gh_tile = grad_hidden + b * gh_b + first * gh_t
    for start in range(0, S, BLOCK_S):
        s_ = start + tl.arange(0, BLOCK_S)
        wide = s_.to(tl.int64)[None, :]
        within_s = valid[:, None] & (s_ < S)[None, :]
        # [2 * HALF, BLOCK_S]
        place_s = row[:, None] * S + s_[None, :]
        has = has_row[:, None] & (s_ < S)[None, :]
        w_end = tl.load(end_weight + place_s, has, other=0.0)
        gh = dot(go_end, w_end, tl.zeros((BLOCK_T, BLOCK_S), tl.float32), PRECISION)
        tl.store(gh_tile + wide * gh_s + i[:, None] * gh_t, cast(gh, grad_hidden.dtype.element_ty), within_s)
        h = tl.load(h_tile + wide * h_s + i[:, None] * h_t, within_s, other=0.0)
        gw_end = dot(tl.trans(go_end), h, tl.zeros((2 * HALF, BLOCK_S), tl.float32), PRECISION)
        tl.store(partials + place_s, gw_end, has)


def _options(
    x: Tensor, hidden: Tensor, end_bias: Tensor | None, weight: Tensor | None, early: Tensor | None, *rest: Any
) -> dict[str, Any]:
    n_early, form, transform_first, reverse, log_det = rest
    channels = x.shape[1]
    half = max(8, triton.next_power_of_2(channels // 2))  # a dot wants 16 columns
    return {
        "C": channels,
        "S": hidden.shape[1],
        "E": 0 if early is None else early.shape[1],
        "N_EARLY": n_early if weight is not None else 0,
        "FORM": form,
        "TRANSFORM_FIRST": transform_first,
        "REVERSE": reverse,
        "HAS_BIAS": end_bias is not None,
        "HAS_WEIGHT": weight is not None,
        "LOG_DET": log_det,
        "HALF": half,
        "PRECISION": tuning.precision(torch.float32),  # of the float32 dots; the others have one way to multiply
        "sizes": {"HALF": half, "S": hidden.shape[1]},
    }


def _dense(x: Tensor | None, otherwise: Tensor) -> Tensor:
    """Return a small tensor contiguous; where there is none, a pointer that the kernel does not read."""
    return otherwise if x is None else x.contiguous()


def flow_step(
    x: Tensor,
    hidden: Tensor,
    end_weight: Tensor,
    end_bias: Tensor | None,
    weight: Tensor | None,
    early: Tensor | None,
    n_early: int,
    form: str,
    transform_first: bool,
    reverse: bool,
    log_det: bool,
) -> tuple[Tensor, Tensor]:
    batch, channels, steps = x.shape
    options = _options(x, hidden, end_bias, weight, early, n_early, form, transform_first, reverse, log_det)
    y = x.new_empty(batch, options["E"] + channels, steps)
    if y.numel() == 0:
        return y, x.new_zeros(batch if log_det else 0, dtype=torch.float32)
    total = x.new_empty(batch if log_det else 0, dtype=torch.float32)

    def tiles(config: dict[str, int]) -> int:
        return int(triton.cdiv(steps, config["BLOCK_T"]))

    def partials(config: dict[str, int]) -> Tensor:
        return x.new_empty(batch * tiles(config), dtype=torch.float32)

    def arrived(config: dict[str, int]) -> Tensor:
        return x.new_zeros(batch, dtype=torch.int32)

    entering = x if early is None else early
    tuning.launch(
        flow_step_fwd_kernel,
        lambda config: (tiles(config), batch),
        hidden,
        x,
        end_weight.contiguous(),
        _dense(end_bias, x),
        _dense(weight, x),
        entering,
        y,
        total if log_det else x,
        tuning.Workspace(partials) if log_det else x,
        tuning.Workspace(arrived) if log_det else x,
        steps,
        *hidden.stride(),
        *x.stride(),
        *entering.stride(),
        **options,
    )
    return y, total


def flow_step_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    hidden: Tensor,
    end_weight: Tensor,
    end_bias: Tensor | None,
    weight: Tensor | None,
    early: Tensor | None,
    n_early: int,
    form: str,
    transform_first: bool,
    reverse: bool,
    log_det: bool,
) -> list[Tensor]:
    batch, _, steps = x.shape
    options = _options(x, hidden, end_bias, weight, early, n_early, form, transform_first, reverse, log_det)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=x.device)
    grad_early = x.new_empty(0) if early is None else torch.empty(early.shape, dtype=x.dtype, device=x.device)
    weights = [t for t in (end_weight, end_bias, weight) if t is not None]
    counts = [t.numel() for t in weights]
    # every program writes its part of the weights' gradients; one sum over the programs adds them in a fixed order
    parts: list[Tensor] = []

    def partials(config: dict[str, int]) -> Tensor:
        programs = batch * triton.cdiv(steps, config["BLOCK_T"])
        parts[:] = [x.new_empty(programs, sum(counts), dtype=torch.float32)]
        return parts[0]

    if x.numel():
        tuning.launch(
            flow_step_bwd_kernel,
            lambda config: (triton.cdiv(steps, config["BLOCK_T"]), batch),
            hidden,
            x,
            end_weight.contiguous(),
            _dense(end_bias, x),
            _dense(weight, x),
            grad,
            grad_log_det.contiguous(),
            grad_x,
            grad_hidden,
            grad_early,
            tuning.Workspace(partials),
            steps,
            *hidden.stride(),
            *x.stride(),
            *grad.stride(),
            *grad_hidden.stride(),
            **options,
        )
    total = parts[0].sum(0) if parts else x.new_zeros(sum(counts), dtype=torch.float32)
    sums = torch.split(total, counts)
    given = iter([part.view(t.shape).to(t.dtype, copy=True) for part, t in zip(sums, weights, strict=True)])
    return [
        grad_x,
        grad_hidden,
        next(given),
        hidden.new_empty(0) if end_bias is None else next(given),
        x.new_empty(0) if weight is None else next(given),
        grad_early,
    ]


registry.implement("triton", "flow_step", flow_step)
registry.implement("triton", "flow_step_backward", flow_step_backward)
