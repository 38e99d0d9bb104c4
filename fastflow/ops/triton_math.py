"""Functions that Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import current_target
from triton.runtime.jit import constexpr_function

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@constexpr_function
def nvidia():
    """Whether the kernel is being compiled for an NVIDIA GPU."""
    target = None if triton.knobs.runtime.interpret else current_target()
    return target is not None and target.backend == "cuda"


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a @ b with a: [M, K], b: [K, N] and a float32 accumulator [M, N]."""
    if INTERPRETED:  # its numpy multiplies bfloat16 by their bits; products of widened values are exact
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """Return float32 x in DTYPE, rounded to the nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter truncates: round before
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def load_where(pointers, mask, MASKED: tl.constexpr):
    """Load, zero where `mask` is false; where sizes are multiples of blocks, say so by MASKED: it saves registers."""
    if MASKED:
        return tl.load(pointers, mask=mask, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def log_sigmoid(x):
    """Return log(sigmoid(x)), to float32's relative accuracy also where it is next to nothing."""
    small = tl.exp(-tl.abs(x))
    one_and = 1 + small
    # log(1 + small) with the rounding of the sum taken out (Kahan)
    log = tl.where(one_and == 1, small, tl.log(one_and) * (small / (tl.where(one_and == 1, 2.0, one_and) - 1)))
    return tl.minimum(x, 0.0) - log


@triton.jit
def _tanh_instruction(x):
    """NVIDIA's tanh instruction: relative error at most 2^-11 (PTX ISA, `tanh.approx.f32`)."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def tanh_and_sigmoid(u, v, DTYPE: tl.constexpr):
    """Return tanh(u) and sigmoid(v) of float32 values, precise enough for results in DTYPE.

    Beside tensor cores, the few units that evaluate exponentials are what a gate waits for. Where the result is rounded
    to 16 bits anyway, one instruction replaces an exponential and a division.
    """
    if nvidia() and DTYPE.primitive_bitwidth == 16:
        return _tanh_instruction(u), 0.5 * _tanh_instruction(0.5 * v) + 0.5
    else:
        return tanh(u), tl.sigmoid(v)


@triton.jit
def gate(u, v, DTYPE: tl.constexpr):
    """Return tanh(u) * sigmoid(v) of float32 values in DTYPE."""
    if nvidia() and DTYPE.primitive_bitwidth == 16:
        t, s = tanh_and_sigmoid(u, v, DTYPE)
        return cast(t * s, DTYPE)
    else:  # one division instead of two; below -15 tanh is -1 in float32, and its exponential might overflow
        p = tl.exp(-2 * tl.where(u < -15, -15.0, u))
        q = tl.exp(-v)
        return cast((1 - p) / ((1 + p) * (1 + q)), DTYPE)


@triton.jit
def computed(x):
    """Return x, held as it is from here on.

    LLVM moves arithmetic down to its first use. Where that lies behind a long loop, the wider operands would stay in
    registers all through it; an empty assembly statement, opaque to the compiler, ends that.
    """
    if nvidia():  # AMD names registers otherwise
        if x.dtype.primitive_bitwidth == 16:
            x = tl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=2)
        else:
            x = tl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=1)
    return x
