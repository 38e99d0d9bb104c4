"""`wn_layer` forward in Triton: one launch per layer.

Inside, time comes before channels: [B, T, C]. A program makes all outputs of BLOCK_T steps of one item. It goes through
the gate's channels in blocks; for each it runs one matrix product over K = k * C + C_c, in which the shifted rows of h
(the dilated taps) and the rows of the conditioning follow each other, and keeps the gated block on chip. The second
product then takes all blocks at once and ends in the residual sum and the accumulation of skips.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.triton_math import cast, computed, dot, gate, load_where


@triton.jit
def gate_inputs(
    h,  # [T, C], one item's, at its first step
    conv_weight,  # [2G, k, C]
    conv_bias,  # [2G] or None
    cond,  # [T or 1, C_c], one item's, or None
    cond_weight,  # [2G, C_c] or None
    cond_bias,  # [2G] or None
    input_bias,  # [C], one item's, or None
    t0,  # the tile's first step
    g0,  # the first gate channel of the block
    T,
    dilation,
    padding,  # zeros before the first step
    stride_ht,
    stride_ct,
    C: tl.constexpr,
    G: tl.constexpr,
    KERNEL: tl.constexpr,
    COND_CHANNELS: tl.constexpr,
    COND: tl.constexpr,  # "none", "local", "global", "projected" or "projected global"
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the inputs of tanh and of the sigmoid for BLOCK_G gate channels, both float32 [BLOCK_T, BLOCK_G]."""
    steps = tl.arange(0, BLOCK_T)
    g = g0 + tl.arange(0, BLOCK_G)
    k = tl.arange(0, BLOCK_K)
    in_g = g < G

    # What is the same for all steps, [BLOCK_G], comes first: after the loop it would need registers of its own.
    add_tanh = tl.zeros((BLOCK_G,), tl.float32)
    add_sigmoid = tl.zeros((BLOCK_G,), tl.float32)
    if conv_bias is not None:
        add_tanh += tl.load(conv_bias + g, mask=in_g, other=0.0)
        add_sigmoid += tl.load(conv_bias + G + g, mask=in_g, other=0.0)
    if cond_bias is not None:
        add_tanh += tl.load(cond_bias + g, mask=in_g, other=0.0)
        add_sigmoid += tl.load(cond_bias + G + g, mask=in_g, other=0.0)
    if COND == "global":
        add_tanh += row_products(cond_weight, cond, g, COND_CHANNELS, COND_CHANNELS, G, BLOCK_G, BLOCK_K)
        add_sigmoid += row_products(
            cond_weight + G * COND_CHANNELS, cond, g, COND_CHANNELS, COND_CHANNELS, G, BLOCK_G, BLOCK_K
        )
    if COND == "projected global":
        add_tanh += tl.load(cond + g, mask=in_g, other=0.0)
        add_sigmoid += tl.load(cond + G + g, mask=in_g, other=0.0)
    acc_tanh = tl.zeros((BLOCK_T, BLOCK_G), tl.float32) + add_tanh[None, :]
    acc_sigmoid = tl.zeros((BLOCK_T, BLOCK_G), tl.float32) + add_sigmoid[None, :]

    # All of K in one loop, so that the pipeline of loads does not run dry between taps or before the conditioning.
    BLOCKS_C: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    BLOCKS_CONV: tl.constexpr = KERNEL * BLOCKS_C
    BLOCKS_COND: tl.constexpr = (COND_CHANNELS + BLOCK_K - 1) // BLOCK_K if COND == "local" else 0
    MASKED_K: tl.constexpr = C % BLOCK_K != 0 or (BLOCKS_COND > 0 and COND_CHANNELS % BLOCK_K != 0)
    MASKED: tl.constexpr = MASKED_K or G % BLOCK_G != 0
    h_tile = h + t0.to(tl.int64) * stride_ht
    for i in range(0, BLOCKS_CONV + BLOCKS_COND):
        tap = i // BLOCKS_C
        first = (i - tap * BLOCKS_C) * BLOCK_K  # of the channels
        shift = tap * dilation - padding
        rows, stride_t, limit = h_tile, stride_ht, C
        weight, stride_g, column = conv_weight, KERNEL * C, tap * C + first
        if BLOCKS_COND > 0:
            is_cond = i >= BLOCKS_CONV
            first = tl.where(is_cond, (i - BLOCKS_CONV) * BLOCK_K, first)
            shift = tl.where(is_cond, 0, shift)
            rows = tl.where(is_cond, cond + t0.to(tl.int64) * stride_ct, h_tile)
            stride_t = tl.where(is_cond, stride_ct, stride_ht)
            limit = tl.where(is_cond, COND_CHANNELS, C)
            weight = tl.where(is_cond, cond_weight, conv_weight)
            stride_g = tl.where(is_cond, COND_CHANNELS, KERNEL * C)
            column = tl.where(is_cond, first, column)
        source = t0 + steps + shift
        in_t = (source >= 0) & (source < T)
        in_k = first + k < limit
        # x: [BLOCK_T, BLOCK_K]
        in_x = in_t[:, None] & in_k[None, :] if MASKED_K else in_t[:, None]
        x = tl.load(rows + (steps + shift)[:, None] * stride_t + (first + k)[None, :], mask=in_x, other=0.0)
        # w: [BLOCK_K, BLOCK_G], read from rows of the weight
        offsets = g[None, :] * stride_g + (column + k)[:, None]
        in_w = in_g[None, :] & in_k[:, None]
        w = load_where(weight + offsets, in_w, MASKED)
        acc_tanh = dot(x, w, acc_tanh, PRECISION)
        w = load_where(weight + G * stride_g + offsets, in_w, MASKED)
        acc_sigmoid = dot(x, w, acc_sigmoid, PRECISION)

    if COND == "projected":
        offsets = steps[:, None] * stride_ct + g[None, :]
        in_u = (t0 + steps < T)[:, None] & in_g[None, :]
        cond_tile = cond + t0.to(tl.int64) * stride_ct
        acc_tanh += tl.load(cond_tile + offsets, mask=in_u, other=0.0)
        acc_sigmoid += tl.load(cond_tile + G + offsets, mask=in_u, other=0.0)

    if input_bias is not None:
        # The convolution of a constant: one vector per tap, for the steps whose tap lies inside.
        for tap in tl.static_range(KERNEL):
            source = t0 + steps + tap * dilation - padding
            inside = ((source >= 0) & (source < T)).to(tl.float32)
            w_tap = conv_weight + tap * C
            v = row_products(w_tap, input_bias, g, C, KERNEL * C, G, BLOCK_G, BLOCK_K)
            acc_tanh += inside[:, None] * v[None, :]
            v = row_products(w_tap + G * KERNEL * C, input_bias, g, C, KERNEL * C, G, BLOCK_G, BLOCK_K)
            acc_sigmoid += inside[:, None] * v[None, :]
    return acc_tanh, acc_sigmoid


@triton.jit
def row_products(
    weight,
    vector,
    rows,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return sum over k < SIZE of weight[row, k] * vector[k] for these rows, float32 [BLOCK_G]."""
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_G,), tl.float32)
    for first in range(0, SIZE, BLOCK_K):
        in_k = first + k < SIZE
        v = tl.load(vector + first + k, mask=in_k, other=0.0).to(tl.float32)
        w = tl.load(
            weight + rows[:, None] * STRIDE + (first + k)[None, :],
            mask=(rows < LIMIT)[:, None] & in_k[None, :],
            other=0.0,
        )
        total += tl.sum(w.to(tl.float32) * v[None, :], 1)
    return total


@triton.jit(do_not_specialize=["T", "dilation", "padding", "res_scale", "skip_scale"])
def wn_layer_fwd_kernel(
    h,  # [B, T, C]
    conv_weight,  # [2G, k, C]
    conv_bias,  # [2G] or None
    res_skip_weight,  # [C + S, G], or [S, G] without residual
    res_skip_bias,  # one per row of these, or None
    cond,  # [B, T or 1, C_c] or None
    cond_weight,  # [2G, C_c] or None
    cond_bias,  # [2G] or None
    input_bias,  # [B or 1, C] or None
    mask,  # [B, T] or None
    skip_in,  # [B, T, S], the sum of skips so far, or None
    h_out,  # [B, T, C] or None
    skip_out,  # [B, T, S] or None
    T,
    dilation,
    padding,
    res_scale,
    skip_scale,
    stride_hb,
    stride_ht,
    stride_cb,
    stride_ct,
    stride_ib,
    stride_mb,
    stride_mt,
    C: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    KERNEL: tl.constexpr,
    COND_CHANNELS: tl.constexpr,
    COND: tl.constexpr,
    FINISH: tl.constexpr,  # scale and mask the sum of skips: the block's last layer
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    t0 = tl.program_id(0) * BLOCK_T
    b = tl.program_id(1).to(tl.int64)
    h += b * stride_hb
    if cond is not None:
        cond += b * stride_cb
    if input_bias is not None:
        input_bias += b * stride_ib

    chunks = ()
    for g0 in tl.static_range(0, G, BLOCK_G):
        u_tanh, u_sigmoid = gate_inputs(
            h,
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
        a = computed(gate(u_tanh, u_sigmoid, h.dtype.element_ty))
        chunks = chunks + (a,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no other way)

    steps = tl.arange(0, BLOCK_T)
    in_t = t0 + steps < T
    base = t0.to(tl.int64)
    if mask is not None:
        kept = tl.load(mask + b * stride_mb + (base + steps) * stride_mt, mask=in_t, other=0.0).to(tl.float32)

    # The rows of the second product, residual then skip, in one loop as well; each block belongs to one of the two.
    BLOCKS_RES: tl.constexpr = (C + BLOCK_R - 1) // BLOCK_R if h_out is not None else 0
    BLOCKS_SKIP: tl.constexpr = (S + BLOCK_R - 1) // BLOCK_R if skip_out is not None else 0
    MASKED: tl.constexpr = (
        G % BLOCK_G != 0 or (BLOCKS_RES > 0 and C % BLOCK_R != 0) or (BLOCKS_SKIP > 0 and S % BLOCK_R != 0)
    )
    FIRST_SKIP: tl.constexpr = C if h_out is not None else 0
    h += base * stride_ht
    if h_out is not None:
        h_out += (b * T + base) * C
    if skip_in is not None:
        skip_in += (b * T + base) * S
    if skip_out is not None:
        skip_out += (b * T + base) * S
    for i in range(0, BLOCKS_RES + BLOCKS_SKIP):
        if BLOCKS_SKIP == 0:
            r0, limit, first = i * BLOCK_R, C, 0
            before, stride_bt, out, width, scale = h, stride_ht, h_out, C, res_scale
        elif BLOCKS_RES == 0:
            r0, limit, first = i * BLOCK_R, S, 0
            before, stride_bt, out, width, scale = skip_in, S, skip_out, S, skip_scale
        else:
            is_skip = i >= BLOCKS_RES
            r0 = tl.where(is_skip, i - BLOCKS_RES, i) * BLOCK_R
            limit = tl.where(is_skip, S, C)
            first = tl.where(is_skip, FIRST_SKIP, 0)
            before, stride_bt = h, stride_ht
            if skip_in is not None:
                before = tl.where(is_skip, skip_in, h)
                stride_bt = tl.where(is_skip, S, stride_ht)
            out = tl.where(is_skip, skip_out, h_out)
            width = tl.where(is_skip, S, C)
            scale = tl.where(is_skip, skip_scale, res_scale)
        r = r0 + tl.arange(0, BLOCK_R)
        in_r = r < limit
        acc = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for j in tl.static_range(len(chunks)):
            g = j * BLOCK_G + tl.arange(0, BLOCK_G)
            # w: [BLOCK_G, BLOCK_R], read from rows of the weight
            w = load_where(
                res_skip_weight + (first + r)[None, :] * G + g[:, None], in_r[None, :] & (g < G)[:, None], MASKED
            )
            acc = dot(chunks[j], w, acc, PRECISION)
        if res_skip_bias is not None:
            acc += tl.load(res_skip_bias + first + r, mask=in_r, other=0.0).to(tl.float32)[None, :]
        valid = in_t[:, None] & in_r[None, :]
        if before is not None:  # [BLOCK_T, BLOCK_R]: h, or the sum of skips so far
            in_before = valid
            if BLOCKS_RES > 0 and skip_in is None:
                in_before = valid & (i < BLOCKS_RES)
            acc += tl.load(before + steps[:, None] * stride_bt + r[None, :], mask=in_before, other=0.0)
        acc *= scale
        if mask is not None:
            if FINISH or BLOCKS_SKIP == 0:
                acc *= kept[:, None]
            elif BLOCKS_RES > 0:
                acc *= tl.where(is_skip, 1.0, kept)[:, None]
        tl.store(out + steps[:, None] * width + r[None, :], cast(acc, h.dtype.element_ty), mask=valid)


def tap_major(weight: Tensor) -> Tensor:
    """Return a convolution's weight [2G, C, k] as dense [2G, k, C]: K of the matrix product contiguous."""
    return weight.transpose(1, 2).contiguous()


def conditioning(cond: Tensor | None, cond_weight: Tensor | None) -> str:
    """Return what the kernels call this kind of conditioning; `cond` is [B, T or 1, C_c]."""
    if cond is None:
        return "none"
    if cond_weight is not None:
        return "local" if cond.shape[1] > 1 else "global"
    return "projected" if cond.shape[1] > 1 else "projected global"


def padding_before(conv_weight: Tensor, dilation: int, causal: bool) -> int:
    """Return how many zeros stand before the first step, for a weight [2G, k, C]."""
    span = dilation * (conv_weight.shape[1] - 1)
    return span if causal else span // 2


def launch_layer(
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
    *,
    h_out: Tensor | None,
    skip_out: Tensor | None,
    skip_in: Tensor | None = None,
    skip_scale: float | None = None,
) -> None:
    """Run one layer on re-laid tensors; see the kernel for their layouts.

    `h_out` None means that the residual is not wanted: `res_skip_weight` then has skip rows only. `skip_out` None means
    that the skip is not wanted. `skip_in` is added to the skip. `skip_scale`, where given, makes this the block's last
    layer: the sum of skips is scaled and masked.
    """
    batch, time, channels = h.shape
    rows, kernel, _ = conv_weight.shape
    gate = rows // 2
    skip_channels = res_skip_weight.shape[0] - (channels if h_out is not None else 0)
    kind = conditioning(cond, cond_weight)
    cond_channels = cond.shape[2] if cond is not None else 0
    tuning.launch(
        wn_layer_fwd_kernel,
        lambda config: (triton.cdiv(time, config["BLOCK_T"]), batch),
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
        skip_in,
        h_out,
        skip_out,
        time,
        dilation,
        padding_before(conv_weight, dilation, causal),
        res_scale,
        1.0 if skip_scale is None else skip_scale,
        h.stride(0),
        h.stride(1),
        0 if cond is None else cond.stride(0),
        0 if cond is None else cond.stride(1),
        0 if input_bias is None or input_bias.shape[0] == 1 else input_bias.stride(0),
        0 if mask is None else mask.stride(0),
        0 if mask is None else mask.stride(2),
        C=channels,
        G=gate,
        S=skip_channels,
        KERNEL=kernel,
        COND_CHANNELS=cond_channels,
        COND=kind,
        FINISH=skip_scale is not None,
        PRECISION=tuning.precision(h.dtype),
        sizes={
            "C": channels,
            "G": gate,
            "R": res_skip_weight.shape[0],
            "K": kernel * channels + (cond_channels if kind == "local" else 0),
            "T": batch * time,
        },
    )


def relaid(x: Tensor | None) -> Tensor | None:
    """Return x [B, C, T] with channels last, [B, T, C]; None stays None."""
    return None if x is None else tuning.aligned_channels_last(x)


def dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def wn_layer(
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
) -> tuple[Tensor, Tensor]:
    batch, channels, time = h.shape
    residual_channels = channels if residual else 0
    h_out = h.new_empty(batch, time, residual_channels)
    skip = h.new_empty(batch, time, res_skip_weight.shape[0] - residual_channels)
    if h_out.numel() + skip.numel() > 0:
        launch_layer(
            tuning.aligned_channels_last(h),
            tap_major(conv_weight),
            dense(conv_bias),
            res_skip_weight.contiguous(),
            dense(res_skip_bias),
            relaid(cond),
            dense(cond_weight),
            dense(cond_bias),
            dense(input_bias),
            mask,
            dilation,
            causal,
            res_scale,
            h_out=h_out if residual else None,
            skip_out=skip if skip.shape[2] else None,
        )
    return h_out.transpose(1, 2), skip.transpose(1, 2)


registry.implement("triton", "wn_layer", wn_layer)
