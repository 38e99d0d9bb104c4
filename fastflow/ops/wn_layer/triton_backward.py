"""`wn_layer` backward in Triton: four launches per layer and no atomics, so that the result is the same on every run.

1. gate: the gate's input is computed again; out come its gradient and, for the res/skip weight, the gated activation.
2. weight: everything that contracts over time is one list of tiles [rows, columns]. Batch and time are cut into
   segments; each segment's tile is stored by itself; the next launch, reduce, adds the segments in order.
3. data: the transposed convolution, and beside it, as further columns, the gradient of the conditioning.

Inside, time comes before channels, as in the forward. `grad_r` [B, T, R] is the gradient of the res/skip product: the
residual's channels, already masked and scaled, then the skip's. A block has one such buffer for all layers: the skip's
part is written once, the residual's part is replaced by each layer's data launch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_math import cast, dot, load_where, tanh_and_sigmoid
from fastflow.ops.wn_layer import reference
from fastflow.ops.wn_layer.triton import conditioning, dense, gate_inputs, padding_before, relaid, tap_major


@triton.jit(do_not_specialize=["T", "dilation", "padding"])
def wn_layer_bwd_gate_kernel(
    h,  # [B, T, C]
    conv_weight,  # [2G, k, C]
    conv_bias,  # [2G] or None
    cond,  # [B, T or 1, C_c] or None
    cond_weight,  # [2G, C_c] or None
    cond_bias,  # [2G] or None
    input_bias,  # [B or 1, C] or None
    grad_r,  # [B, T, R]
    res_skip_weight,  # [R, G]
    grad_u,  # [B, T, 2G] or None
    gated,  # [B, T, G] or None
    sums,  # [B, time tiles, 2G] float32, of grad_u over the tile's steps, or None
    T,
    dilation,
    padding,
    stride_hb,
    stride_ht,
    stride_cb,
    stride_ct,
    stride_ib,
    stride_rb,
    stride_rt,
    stride_ub,
    stride_ut,
    C: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    KERNEL: tl.constexpr,
    COND_CHANNELS: tl.constexpr,
    COND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Blocks of channels follow each other, so that a tile's rows are still in the cache for the next of its blocks.
    BLOCKS: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    tile = tl.program_id(0) // BLOCKS
    g0 = (tl.program_id(0) - tile * BLOCKS) * BLOCK_G
    t0 = tile * BLOCK_T
    b = tl.program_id(1).to(tl.int64)
    steps = tl.arange(0, BLOCK_T)
    g = g0 + tl.arange(0, BLOCK_G)
    first = b * T + t0  # of the rows of the dense [B, T, ...]
    in_g = g < G
    valid = (t0 + steps < T)[:, None] & in_g[None, :]

    if cond is not None:
        cond += b * stride_cb
    if input_bias is not None:
        input_bias += b * stride_ib
    u_tanh, u_sigmoid = gate_inputs(
        h + b * stride_hb,
        conv_weight,
        conv_bias,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
        t0,
        g0,
        T,
        dilation,
        padding,
        stride_ht,
        stride_ct,
        C,
        G,
        KERNEL,
        COND_CHANNELS,
        COND,
        BLOCK_T,
        BLOCK_G,
        BLOCK_K,
        PRECISION,
    )
    DTYPE: tl.constexpr = h.dtype.element_ty
    a, s = tanh_and_sigmoid(u_tanh, u_sigmoid, DTYPE)
    if gated is not None:
        tl.store(gated + first * G + steps[:, None] * G + g[None, :], cast(a * s, DTYPE), mask=valid)

    if grad_u is not None or sums is not None:
        k = tl.arange(0, BLOCK_K)
        rows = grad_r + b * stride_rb + t0.to(tl.int64) * stride_rt
        acc = tl.zeros((BLOCK_T, BLOCK_G), tl.float32)
        MASKED: tl.constexpr = R % BLOCK_K != 0 or G % BLOCK_G != 0
        for r0 in range(0, R, BLOCK_K):
            in_r = r0 + k < R
            x = tl.load(  # [BLOCK_T, BLOCK_K]
                rows + steps[:, None] * stride_rt + (r0 + k)[None, :],
                mask=(t0 + steps < T)[:, None] & in_r[None, :],
                other=0.0,
            )
            offsets = (r0 + k)[:, None] * G + g[None, :]
            w = load_where(res_skip_weight + offsets, in_r[:, None] & in_g[None, :], MASKED)  # [BLOCK_K, BLOCK_G]
            acc = dot(x, w, acc, PRECISION)
        acc *= s
        grad_tanh = acc * (1 - a * a)
        grad_sigmoid = acc * a * (1 - s)
        if grad_u is not None:
            grad_u += b * stride_ub + t0.to(tl.int64) * stride_ut
            offsets = steps[:, None] * stride_ut + g[None, :]
            tl.store(grad_u + offsets, cast(grad_tanh, DTYPE), mask=valid)
            tl.store(grad_u + G + offsets, cast(grad_sigmoid, DTYPE), mask=valid)
        if sums is not None:  # steps past the end add zeros, since their rows of grad_r are zeros
            sums += (b * tl.cdiv(T, BLOCK_T) + tile) * (2 * G)
            tl.store(sums + g, tl.sum(grad_tanh, 0), mask=in_g)
            tl.store(sums + G + g, tl.sum(grad_sigmoid, 0), mask=in_g)


@triton.jit(do_not_specialize=["T", "dilation", "padding", "splits"])
def wn_layer_bwd_weight_kernel(
    h,  # [B, T, C]
    grad_u,  # [B, T, 2G]
    grad_r,  # [B, T, R]
    input_bias,  # [B or 1, C] or None
    cond,  # [B, T, C_c]
    gated,  # [B, T, G]
    partial,  # [splits, 2G * k * C + 2G * C_c + R * G] float32: [2G, k, C], [2G, C_c], [R, G], those that are wanted
    batch,
    T,
    dilation,
    padding,
    splits,
    stride_ub,
    stride_ut,
    stride_rb,
    stride_rt,
    stride_hb,
    stride_ht,
    stride_ib,
    stride_cb,
    stride_ct,
    C: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    KERNEL: tl.constexpr,
    COND_CHANNELS: tl.constexpr,
    CONV: tl.constexpr,  # which of the three gradients are wanted
    COND: tl.constexpr,
    RES_SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The tiles of [2G, k * C + C_c], rows of tiles after each other, then those of [R, G]
    BLOCKS_C: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    BLOCKS_CONV: tl.constexpr = KERNEL * BLOCKS_C if CONV else 0
    BLOCKS_COND: tl.constexpr = (COND_CHANNELS + BLOCK_N - 1) // BLOCK_N if COND else 0
    BLOCKS_X: tl.constexpr = BLOCKS_CONV + BLOCKS_COND
    BLOCKS_G: tl.constexpr = (G + BLOCK_N - 1) // BLOCK_N
    TILES_U: tl.constexpr = (2 * G + BLOCK_M - 1) // BLOCK_M * BLOCKS_X
    SIZE_CONV: tl.constexpr = 2 * G * KERNEL * C if CONV else 0
    SIZE_COND: tl.constexpr = 2 * G * COND_CHANNELS if COND else 0
    SIZE: tl.constexpr = SIZE_CONV + SIZE_COND + (R * G if RES_SKIP else 0)

    pid = tl.program_id(0)
    segment = tl.program_id(1)
    is_r = pid >= TILES_U
    pid = tl.where(is_r, pid - TILES_U, pid)
    across = tl.where(is_r, BLOCKS_G, BLOCKS_X)
    row = pid // across
    column = pid - row * across
    is_conv = (column < BLOCKS_CONV) & (is_r == 0)
    tap = tl.where(is_conv, column // BLOCKS_C, 0)
    column = tl.where(is_conv, column - tap * BLOCKS_C, tl.where(is_r, column, column - BLOCKS_CONV))
    shift = tl.where(is_conv, tap * dilation - padding, 0)

    left = tl.where(is_r, grad_r, grad_u)
    stride_lb = tl.where(is_r, stride_rb, stride_ub)
    stride_lt = tl.where(is_r, stride_rt, stride_ut)
    limit_m = tl.where(is_r, R, 2 * G)
    right = tl.where(is_r, gated, tl.where(is_conv, h, cond))
    stride_xb = tl.where(is_r, T.to(tl.int64) * G, tl.where(is_conv, stride_hb, stride_cb))
    stride_xt = tl.where(is_r, G, tl.where(is_conv, stride_ht, stride_ct))
    limit_n = tl.where(is_r, G, tl.where(is_conv, C, COND_CHANNELS))

    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    in_m = m < limit_m
    in_n = n < limit_n
    blocks_t = tl.cdiv(T, BLOCK_K)
    blocks = batch * blocks_t
    each = tl.cdiv(blocks, splits)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(segment * each, tl.minimum(blocks, (segment + 1) * each)):
        b = (i // blocks_t).to(tl.int64)
        t = (i % blocks_t) * BLOCK_K
        # grad: [BLOCK_M, BLOCK_K], read from rows [BLOCK_K, BLOCK_M]
        grad = tl.load(
            left + b * stride_lb + t.to(tl.int64) * stride_lt + m[:, None] + k[None, :] * stride_lt,
            mask=in_m[:, None] & (t + k < T)[None, :],
            other=0.0,
        )
        source = t + shift + k
        in_x = (source >= 0) & (source < T)
        # x: [BLOCK_K, BLOCK_N]
        x = tl.load(
            right + b * stride_xb + (t + shift).to(tl.int64) * stride_xt + k[:, None] * stride_xt + n[None, :],
            mask=in_x[:, None] & in_n[None, :],
            other=0.0,
        )
        if input_bias is not None:
            bias = tl.load(input_bias + b * stride_ib + n, mask=n < tl.where(is_conv, C, 0), other=0.0).to(tl.float32)
            x = cast(tl.where(in_x[:, None], x.to(tl.float32) + bias[None, :], 0.0), x.dtype)
        acc = dot(grad, x, acc, PRECISION)

    # Where the tile's row m = 0 starts and how far apart rows are: a section's last dimension
    width = tl.where(is_r, G, tl.where(is_conv, KERNEL * C, COND_CHANNELS))
    start = tl.where(is_r, SIZE_CONV + SIZE_COND, tl.where(is_conv, tap * C, SIZE_CONV))
    partial += segment.to(tl.int64) * SIZE + start
    tl.store(partial + m[:, None] * width + n[None, :], acc, mask=in_m[:, None] & in_n[None, :])


@triton.jit(do_not_specialize=["splits"])
def wn_layer_bwd_reduce_kernel(
    partial,  # [splits, 2G * k * C + 2G * C_c + R * G] float32, as the weight launch left it
    grad_conv,  # [2G, C, k] or None
    grad_cond,  # [2G, C_c] or None
    grad_res_skip,  # [R, G] or None
    splits,
    SIZE_CONV: tl.constexpr,  # of each of these, zero for None
    SIZE_COND: tl.constexpr,
    SIZE_RES_SKIP: tl.constexpr,
    C: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    SIZE: tl.constexpr = SIZE_CONV + SIZE_COND + SIZE_RES_SKIP
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(partial + i, mask=i < SIZE, other=0.0)
        partial += SIZE
    if grad_conv is not None:
        row = i // C  # of [2G * k, C]
        out = cast(total, grad_conv.dtype.element_ty)
        place = (row // KERNEL * C + i % C) * KERNEL + row % KERNEL
        tl.store(grad_conv + place, out, mask=i < SIZE_CONV)
    if grad_cond is not None:
        out = cast(total, grad_cond.dtype.element_ty)
        tl.store(grad_cond + (i - SIZE_CONV), out, mask=(i >= SIZE_CONV) & (i < SIZE_CONV + SIZE_COND))
    if grad_res_skip is not None:
        out = cast(total, grad_res_skip.dtype.element_ty)
        tl.store(grad_res_skip + (i - SIZE_CONV - SIZE_COND), out, mask=(i >= SIZE_CONV + SIZE_COND) & (i < SIZE))


@triton.jit(do_not_specialize=["T", "dilation", "padding", "scale"])
def wn_layer_bwd_data_kernel(
    grad_u,  # [B, T, 2G]
    conv_weight,  # [2G, k, C]
    cond_weight,  # [2G, C_c] or None
    residual,  # [B, T, C], the gradient that goes past the convolution, or None; may be grad_h itself
    mask,  # [B, T] or None
    grad_h,  # [B, T, C] or None
    sums,  # [B, time tiles, C] float32, of the convolution's part over the tile's steps, or None
    grad_cond,  # [B, T, C_c] or None
    T,
    dilation,
    padding,
    scale,
    stride_ub,
    stride_ut,
    stride_rb,
    stride_rt,
    stride_mb,
    stride_mt,
    stride_hb,
    stride_ht,
    C: tl.constexpr,
    G: tl.constexpr,
    KERNEL: tl.constexpr,
    COND_CHANNELS: tl.constexpr,
    ACCUMULATE: tl.constexpr,  # add to what grad_cond holds
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    BLOCKS_C: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N if grad_h is not None or sums is not None else 0
    BLOCKS_COND: tl.constexpr = (COND_CHANNELS + BLOCK_N - 1) // BLOCK_N if grad_cond is not None else 0
    BLOCKS: tl.constexpr = BLOCKS_C + BLOCKS_COND
    BLOCKS_K: tl.constexpr = (2 * G + BLOCK_K - 1) // BLOCK_K
    MASKED: tl.constexpr = 2 * G % BLOCK_K != 0 or C % BLOCK_N != 0 or BLOCKS_COND * BLOCK_N > COND_CHANNELS
    tile = tl.program_id(0) // BLOCKS
    column = tl.program_id(0) - tile * BLOCKS
    t0 = tile * BLOCK_T
    b = tl.program_id(1).to(tl.int64)
    base = t0.to(tl.int64)

    # A block of the conditioning's channels is like one of h's, with another weight and one tap that does not shift.
    taps, weight, stride_wn, limit, step, before = KERNEL, conv_weight, KERNEL * C, C, dilation, padding
    is_cond = column >= BLOCKS_C
    if BLOCKS_COND > 0:
        column = tl.where(is_cond, column - BLOCKS_C, column)
        taps = tl.where(is_cond, 1, KERNEL)
        weight = tl.where(is_cond, cond_weight, conv_weight)
        stride_wn = tl.where(is_cond, COND_CHANNELS, KERNEL * C)
        limit = tl.where(is_cond, COND_CHANNELS, C)
        step = tl.where(is_cond, 0, dilation)
        before = tl.where(is_cond, 0, padding)

    steps = tl.arange(0, BLOCK_T)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    in_n = n < limit
    rows = grad_u + b * stride_ub + base * stride_ut
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for i in range(0, taps * BLOCKS_K):
        tap = i // BLOCKS_K
        first = (i - tap * BLOCKS_K) * BLOCK_K
        shift = before - tap * step
        source = t0 + steps + shift
        in_k = first + k < 2 * G
        x = tl.load(  # [BLOCK_T, BLOCK_K]
            rows + (steps + shift)[:, None] * stride_ut + (first + k)[None, :],
            mask=((source >= 0) & (source < T))[:, None] & in_k[None, :],
            other=0.0,
        )
        offsets = (first + k)[:, None] * stride_wn + tap * C + n[None, :]
        w = load_where(weight + offsets, in_k[:, None] & in_n[None, :], MASKED)  # [BLOCK_K, BLOCK_N]
        acc = dot(x, w, acc, PRECISION)

    in_t = t0 + steps < T
    valid = in_t[:, None] & in_n[None, :]
    if is_cond:
        if grad_cond is not None:
            grad_cond += (b * T + base) * COND_CHANNELS
            offsets = steps[:, None] * COND_CHANNELS + n[None, :]
            if ACCUMULATE:
                acc += tl.load(grad_cond + offsets, mask=valid, other=0.0)
            tl.store(grad_cond + offsets, cast(acc, grad_cond.dtype.element_ty), mask=valid)
    else:
        if sums is not None:
            summed = tl.sum(tl.where(in_t[:, None], acc, 0.0), 0)  # past the end, taps still reach inside
            tl.store(sums + (b * tl.cdiv(T, BLOCK_T) + tile) * C + n, summed, mask=in_n)
        if grad_h is not None:
            if residual is not None:
                residual += b * stride_rb + base * stride_rt
                acc += tl.load(residual + steps[:, None] * stride_rt + n[None, :], mask=valid, other=0.0)
            acc *= scale
            if mask is not None:
                kept = tl.load(mask + b * stride_mb + (base + steps) * stride_mt, mask=in_t, other=0.0)
                acc *= kept.to(tl.float32)[:, None]
            grad_h += b * stride_hb + base * stride_ht
            out = cast(acc, grad_h.dtype.element_ty)
            tl.store(grad_h + steps[:, None] * stride_ht + n[None, :], out, mask=valid)


class Layer(NamedTuple):
    """A layer's arguments, re-laid."""

    h: Tensor  # [B, T, C]
    conv_weight: Tensor  # [2G, k, C]
    conv_bias: Tensor | None  # [2G]
    res_skip_weight: Tensor  # [R, G]: the rows that `grad_r` has
    cond: Tensor | None  # [B, T or 1, C_c]
    cond_weight: Tensor | None  # [2G, C_c]
    cond_bias: Tensor | None  # [2G]
    input_bias: Tensor | None  # [B or 1, C]
    dilation: int
    causal: bool


class Needs(NamedTuple):
    """Which gradients are wanted; never one of an argument that is None."""

    h: bool
    conv_weight: bool
    conv_bias: bool
    res_skip_weight: bool
    res_skip_bias: bool
    cond: bool
    cond_weight: bool
    cond_bias: bool
    input_bias: bool


class Outputs(NamedTuple):
    """Where `layer_backward` writes the gradients that have a time axis."""

    grad_h: Tensor | None  # [B, T, C], channels dense
    grad_u: Tensor | None  # [B, T, 2G], channels dense: the gradient of a projected conditioning too; None: allocate it
    grad_cond: Tensor | None  # [B, T, C_c], dense
    accumulate: bool  # add to what grad_cond holds


class Gradients(NamedTuple):
    """The other gradients, those that are wanted; no two share memory."""

    conv_weight: Tensor | None  # [2G, C, k]
    conv_bias: Tensor | None  # [2G]
    res_skip_weight: Tensor | None  # [R, G]
    res_skip_bias: Tensor | None  # [R]
    cond: Tensor | None  # float32, of the whole length's: [B, C_c], or projected [B, 2G]
    cond_weight: Tensor | None  # [2G, C_c]
    cond_bias: Tensor | None  # [2G]
    input_bias: Tensor | None  # [B or 1, C]


class _Sums:
    """Room for a kernel's sums over each of its tiles of x [B, T, C]."""

    def __init__(self, x: Tensor, channels: int) -> None:
        self.x, self.channels = x, channels
        self.workspace = tuning.Workspace(self._make)

    def _make(self, config: dict[str, int]) -> Tensor:
        batch, time, _ = self.x.shape
        tiles = triton.cdiv(time, config["BLOCK_T"])
        self.tiles = self.x.new_empty(batch, tiles, self.channels, dtype=torch.float32)
        return self.tiles

    def per_item(self) -> Tensor:
        """Return the sums over all of a launch's tiles, [B, channels]."""
        return self.tiles.sum(1)


def _splits(device: torch.device, size: int, steps: int) -> int:
    """Return into how many segments to cut a contraction over `steps` steps whose result has `size` elements.

    Enough for every multiprocessor to get two tiles of about 128 by 128, but no segment shorter than 512 steps. What
    this returns depends on nothing but the sizes and the device, so that results are the same on every run.
    """
    if device.type == "cpu":
        return min(3, steps)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    tiles = math.ceil(size / (128 * 128))
    return max(1, min(math.ceil(2 * processors / tiles), steps // 512))


def layer_backward(
    layer: Layer,
    grad_r: Tensor,
    needs: Needs,
    out: Outputs,
    residual: Tensor | None,
    mask: Tensor | None,
    scale: float,
) -> Gradients:
    """Go backward through a layer; no tensor is empty.

    Args:
        layer: the arguments.
        grad_r: [B, T, R], channels dense.
        needs: what is wanted.
        out: where that goes. `grad_h` is masked and scaled: what the layer before takes for its residual.
        residual: [B, T, C], what `grad_h` gets besides the convolution's part: `grad_r`'s first channels, or None.
        mask: [B, 1, T] or None.
        scale: a factor on `grad_h`.
    """
    h, conv_weight, conv_bias, res_skip_weight, cond, cond_weight, cond_bias, input_bias, dilation, causal = layer
    batch, time, channels = h.shape
    rows, kernel, _ = conv_weight.shape
    gate, res_skip_rows = rows // 2, res_skip_weight.shape[0]
    kind = conditioning(cond, cond_weight)
    per_item = kind in ("global", "projected global")
    padding = padding_before(conv_weight, dilation, causal)
    sizes = {
        "C": channels,
        "G": gate,
        "R": res_skip_rows,
        "K": kernel * channels + (0 if cond is None or kind != "local" else cond.shape[2]),
        "T": batch * time,
    }
    constants: dict[str, Any] = {
        "C": channels,
        "G": gate,
        "KERNEL": kernel,
        "COND_CHANNELS": 0 if cond is None else cond.shape[2],
        "PRECISION": tuning.precision(h.dtype),
        "sizes": sizes,
    }
    cond_strides = (0, 0) if cond is None else (cond.stride(0), cond.stride(1))
    bias_stride = 0 if input_bias is None or input_bias.shape[0] == 1 else input_bias.stride(0)

    # 1. gate
    needs_x = needs.h or needs.input_bias
    needs_cond = kind == "local" and needs.cond
    needs_cond_weight = kind == "local" and needs.cond_weight
    needs_sums = needs.conv_bias or needs.cond_bias or (per_item and (needs.cond or needs.cond_weight))
    grad_u = gated = sums = None
    if needs_x or needs.conv_weight or needs_cond or needs_cond_weight or (kind == "projected" and needs.cond):
        grad_u = h.new_empty(batch, time, rows) if out.grad_u is None else out.grad_u
    if needs.res_skip_weight:
        gated = h.new_empty(batch, time, gate)
    if needs_sums:
        sums = _Sums(h, rows)
    if grad_u is not None or gated is not None or sums is not None:
        tuning.launch(
            wn_layer_bwd_gate_kernel,
            lambda config: (triton.cdiv(time, config["BLOCK_T"]) * triton.cdiv(gate, config["BLOCK_G"]), batch),
            h,
            conv_weight,
            conv_bias,
            cond,
            cond_weight,
            cond_bias,
            input_bias,
            grad_r,
            res_skip_weight,
            grad_u,
            gated,
            None if sums is None else sums.workspace,
            time,
            dilation,
            padding,
            h.stride(0),
            h.stride(1),
            *cond_strides,
            bias_stride,
            grad_r.stride(0),
            grad_r.stride(1),
            *((0, 0) if grad_u is None else (grad_u.stride(0), grad_u.stride(1))),
            R=res_skip_rows,
            COND=kind,
            **constants,
        )

    # 2. weight
    grad_conv = torch.empty_like(conv_weight).view(rows, channels, kernel) if needs.conv_weight else None
    grad_cond_weight = torch.empty_like(cond_weight) if needs_cond_weight and cond_weight is not None else None
    grad_res_skip = torch.empty_like(res_skip_weight) if needs.res_skip_weight else None
    counts = [0 if x is None else x.numel() for x in (grad_conv, grad_cond_weight, grad_res_skip)]
    if sum(counts):
        splits = _splits(h.device, sum(counts), batch * time)
        partial = h.new_empty(splits, sum(counts), dtype=torch.float32)
        # in place of what is not read, something of this dtype that is as well aligned
        left = h if grad_u is None else grad_u
        x_cond = cond if counts[1] and cond is not None else h

        def tiles(config: dict[str, int]) -> tuple[int, ...]:
            m, n = config["BLOCK_M"], config["BLOCK_N"]
            x = kernel * triton.cdiv(channels, n) if counts[0] else 0
            x += triton.cdiv(cond.shape[2], n) if counts[1] and cond is not None else 0
            r = triton.cdiv(res_skip_rows, m) * triton.cdiv(gate, n) if counts[2] else 0
            return (triton.cdiv(rows, m) * x + r, splits)

        tuning.launch(
            wn_layer_bwd_weight_kernel,
            tiles,
            h,
            left,
            grad_r,
            input_bias,
            x_cond,
            h if gated is None else gated,
            partial,
            batch,
            time,
            dilation,
            padding,
            splits,
            left.stride(0),
            left.stride(1),
            grad_r.stride(0),
            grad_r.stride(1),
            h.stride(0),
            h.stride(1),
            bias_stride,
            x_cond.stride(0),
            x_cond.stride(1),
            R=res_skip_rows,
            CONV=counts[0] > 0,
            COND=counts[1] > 0,
            RES_SKIP=counts[2] > 0,
            **constants,
        )
        tuning.launch(
            wn_layer_bwd_reduce_kernel,
            lambda config: (triton.cdiv(sum(counts), config["BLOCK"]),),
            partial,
            grad_conv,
            grad_cond_weight,
            grad_res_skip,
            splits,
            SIZE_CONV=counts[0],
            SIZE_COND=counts[1],
            SIZE_RES_SKIP=counts[2],
            C=channels,
            KERNEL=kernel,
            sizes={"N": sum(counts)},
        )

    # 3. data; it may write to grad_r
    grad_res_skip_bias = grad_r.sum((0, 1), dtype=torch.float32).to(h.dtype) if needs.res_skip_bias else None
    sums_x = _Sums(h, channels) if needs.input_bias else None
    grad_h = out.grad_h if needs.h else None
    grad_cond = out.grad_cond if needs_cond else None
    if needs_x or needs_cond:
        assert grad_u is not None

        def columns(config: dict[str, int]) -> tuple[int, ...]:
            n = triton.cdiv(channels, config["BLOCK_N"]) if needs_x else 0
            n += triton.cdiv(grad_cond.shape[2], config["BLOCK_N"]) if grad_cond is not None else 0
            return (triton.cdiv(time, config["BLOCK_T"]) * n, batch)

        tuning.launch(
            wn_layer_bwd_data_kernel,
            columns,
            grad_u,
            conv_weight,
            cond_weight if needs_cond else None,
            residual,
            mask,
            grad_h,
            None if sums_x is None else sums_x.workspace,
            grad_cond,
            time,
            dilation,
            padding,
            scale,
            grad_u.stride(0),
            grad_u.stride(1),
            *((0, 0) if residual is None else (residual.stride(0), residual.stride(1))),
            *((0, 0) if mask is None else (mask.stride(0), mask.stride(2))),
            *((0, 0) if grad_h is None else (grad_h.stride(0), grad_h.stride(1))),
            ACCUMULATE=out.accumulate,
            **constants,
        )

    # What is left is small: sums over tiles and items, products with one row per item.
    items = None if sums is None else sums.per_item()  # [B, 2G]
    grad_bias = None if items is None else items.sum(0)
    grad_item = None
    if kind == "projected global":
        grad_item = items
    elif kind == "global" and items is not None:
        assert cond is not None and cond_weight is not None
        grad_item = items @ cond_weight.float() if needs.cond else None
        grad_cond_weight = (items.t() @ cond[:, 0].float()).to(h.dtype) if needs.cond_weight else None
    grad_input_bias = None if sums_x is None else sums_x.per_item()
    if grad_input_bias is not None and input_bias is not None and input_bias.shape[0] == 1:
        grad_input_bias = grad_input_bias.sum(0, keepdim=True)
    return Gradients(
        grad_conv,
        grad_bias.to(h.dtype) if grad_bias is not None and needs.conv_bias else None,
        grad_res_skip,
        grad_res_skip_bias,
        grad_item if needs.cond else None,
        grad_cond_weight,
        grad_bias.to(h.dtype, copy=True) if grad_bias is not None and needs.cond_bias else None,
        None if grad_input_bias is None else grad_input_bias.to(h.dtype),
    )


def wn_layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
    needs: list[bool],
) -> list[Tensor]:
    """Return the gradients of the nine inputs h to input_bias, empty where not needed or not given."""
    inputs = [h, conv_weight, conv_bias, res_skip_weight, res_skip_bias, cond, cond_weight, cond_bias, input_bias]
    wanted = Needs(*(n and x is not None for x, n in zip(inputs, needs, strict=True)))
    batch, channels, time = h.shape
    if any(x is not None and x.numel() == 0 for x in (h, conv_weight, res_skip_weight, cond)):  # nothing to launch for
        grads = reference.wn_layer_backward(
            grad_h,
            grad_skip,
            h,
            conv_weight,
            conv_bias,
            res_skip_weight,
            res_skip_bias,
            cond,
            cond_weight,
            cond_bias,
            input_bias,
            mask,
            dilation,
            causal,
            res_scale,
            residual,
            list(wanted),
        )
        return [g if n else h.new_empty(0) for g, n in zip(grads, wanted, strict=True)]

    if residual:  # re-laid into one tensor, masked and scaled on the way
        grad_r = h.new_empty(batch, time, res_skip_weight.shape[0])
        past = grad_r[:, :, :channels]
        torch.mul(grad_h.transpose(1, 2), res_scale if mask is None else mask.transpose(1, 2) * res_scale, out=past)
        grad_r[:, :, channels:] = grad_skip.transpose(1, 2)
    else:
        past, grad_r = None, tuning.aligned_channels_last(grad_skip)
    layer = Layer(
        tuning.aligned_channels_last(h),
        tap_major(conv_weight),
        dense(conv_bias),
        res_skip_weight.contiguous(),
        relaid(cond),
        dense(cond_weight),
        dense(cond_bias),
        dense(input_bias),
        dilation,
        causal,
    )
    kind = conditioning(layer.cond, cond_weight)
    grad_x = h.new_empty(batch, time, channels) if wanted.h else None
    grad_cond = None
    if cond is not None and kind in ("local", "projected") and wanted.cond:
        grad_cond = h.new_empty(batch, time, cond.shape[1])
    out = Outputs(
        grad_x, grad_cond if kind == "projected" else None, grad_cond if kind == "local" else None, accumulate=False
    )
    g = layer_backward(layer, grad_r, wanted, out, past, None, 1.0)
    results = [
        None if grad_x is None else grad_x.transpose(1, 2),
        g.conv_weight,
        g.conv_bias,
        g.res_skip_weight,
        g.res_skip_bias,
        grad_cond.transpose(1, 2) if grad_cond is not None else g.cond if g.cond is None else g.cond[:, :, None],
        g.cond_weight,
        g.cond_bias,
        g.input_bias,
    ]
    return [h.new_empty(0) if x is None else x.to(h.dtype) for x in results]


registry.implement("triton", "wn_layer_backward", wn_layer_backward)
