"""What the public functions say of arguments that do not fit: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastflow import ops

z = torch.zeros
LAYER = (z(2, 4, 5), z(6, 4, 3), z(6), z(7, 3), z(7), z(2, 8, 5), z(6, 8), z(6))
BLOCK: tuple[Any, ...] = (z(2, 4, 5), [z(6, 4, 3)] * 2, [z(6)] * 2, [z(7, 3), z(3, 3)], [z(7), z(3)], z(2, 8, 5))
BLOCK = (*BLOCK, [z(6, 8)] * 2, [z(6)] * 2)
DILATIONS = {"dilations": [1, 2]}


def test_the_good_calls_pass() -> None:
    h, skip = ops.wn_layer(*LAYER)
    assert h.shape == (2, 4, 5)
    assert skip.shape == (2, 3, 5)
    assert ops.wn(*BLOCK, **DILATIONS).shape == (2, 3, 5)
    assert ops.flow_step(*STEP, reverse=True)[0].shape == (2, 6, 5)
    assert phased(7, ())().shape == (2, 3, 6)  # type: ignore[attr-defined]


def changed(arguments: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    return (*arguments[:position], value, *arguments[position + 1 :])


def layer(position: int, value: Any, **options: Any) -> Callable[[], object]:
    return lambda: ops.wn_layer(*changed(LAYER, position, value), **options)


def block(position: int, value: Any, **options: Any) -> Callable[[], object]:
    return lambda: ops.wn(*changed(BLOCK, position, value), **(DILATIONS | options))


def step(position: int, value: Any, **options: Any) -> Callable[[], object]:
    return lambda: ops.flow_step(*changed(STEP, position, value), **options)


def phased(position: int, value: Any) -> Callable[[], object]:
    """`wn` of 6 steps in 3 phases, layer 0's bias per phase, with one argument changed."""
    good = changed(changed(BLOCK, 0, z(2, 4, 6)), 5, z(2, 8, 2))[:6]
    return lambda: ops.wn(*changed((*good, [z(3, 6, 8)] * 2, [z(3, 6), z(6)]), position, value), **DILATIONS)


x = z(2, 4, 5)
STEP = (x, z(2, 8, 5), z(4, 8), z(4), z(4, 4), z(2, 2, 5))  # in reverse; forward has no early outputs to join
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: ops.gate([1.0]), TypeError, "`x` must be a tensor; got list"),  # type: ignore[arg-type]
    (
        lambda: ops.gate(z(1, 2, 3, dtype=torch.int64)),
        TypeError,
        "`x` must be a floating-point tensor; got torch.int64",
    ),
    (lambda: ops.gate(z(1, 3, 3)), ValueError, "`x` must be [B, 2G, T]; got [1, 3, 3]"),
    (lambda: ops.gate(z(2, 3)), ValueError, "`x` must be [B, 2G, T]; got [2, 3]"),
    (layer(0, z(4, 5)), ValueError, "`h` must be [B, C, T]; got [4, 5]"),
    (layer(0, z(2, 4, 5).long()), TypeError, "`h` must be a floating-point tensor; got torch.int64"),
    (layer(1, z(6, 5, 3)), ValueError, "`conv_weight` must be [2G, C, k], here [*, 4, *]; got [6, 5, 3]"),
    (layer(1, z(6, 4, 2)), ValueError, "`conv_weight` must be [2G, C, k] with k odd; got [6, 4, 2]"),
    (layer(1, z(5, 4, 3)), ValueError, "`conv_weight` must be [2G, C, k] with k odd; got [5, 4, 3]"),
    (layer(2, z(5)), ValueError, "`conv_bias` must be one value per row of its weight, here [6]; got [5]"),
    (layer(3, z(7, 4)), ValueError, "`res_skip_weight` must be [R + S, G], here [*, 3]; got [7, 4]"),
    (layer(3, z(3, 3)), ValueError, "`res_skip_weight` must have at least C = 4 rows, the residual's; got [3, 3]"),
    (layer(4, z(6)), ValueError, "`res_skip_bias` must be one value per row of its weight, here [7]; got [6]"),
    (layer(5, z(2, 8, 4)), ValueError, "`cond` must have 1 or T = 5 steps; got [2, 8, 4]"),
    (layer(5, z(3, 8, 5)), ValueError, "`cond` must be [B, C_c, T or 1], here [2, *, *]; got [3, 8, 5]"),
    (layer(5, None), ValueError, "`cond` must be given with `cond_weight`; got None"),
    (layer(6, z(6, 7)), ValueError, "`cond_weight` must be [2G, C_c], here [6, 8]; got [6, 7]"),
    (layer(6, None), ValueError, "`cond` without `cond_weight` must have 6 channels, the gate's; got [2, 8, 5]"),
    (layer(7, z(6).double()), ValueError, "`cond_bias` must have the dtype of `h`, torch.float32; got torch.float64"),
    (layer(2, z(6, device="meta")), ValueError, "`conv_bias` must be on the device of `h`, cpu; got meta"),
    (layer(0, x, input_bias=z(3, 4)), ValueError, "`input_bias` must be [B or 1, C]; got [3, 4] with B = 2"),
    (layer(0, x, mask=z(2, 5)), ValueError, "`mask` must be [B, 1, T] of `h`; got [2, 5]"),
    (layer(0, x, dilation=0), ValueError, "`dilation` must be at least 1; got 0"),
    (block(1, []), ValueError, "`conv_weights` must have one tensor per layer; got none"),
    (block(2, [z(6)]), ValueError, "`conv_biases` must have 2 entries, one per layer; got 1"),
    (block(3, [z(7, 3)] * 2), ValueError, "`res_skip_weights[0]` must have 11 rows, residual and skip; got [7, 3]"),
    (block(3, []), ValueError, "`res_skip_weights` must have 2 entries, one per layer; got 0"),
    (
        block(1, [z(6, 4, 3), z(6, 3, 3)]),
        ValueError,
        "`conv_weights[1]` must be [2G, C, k], here [*, 4, *]; got [6, 3, 3]",
    ),
    (block(6, [z(6, 8), z(6, 7)]), ValueError, "`cond_weights[1]` must be [2G, C_c], here [6, 8]; got [6, 7]"),
    (block(0, x, dilations=[1]), ValueError, "`dilations` must have 2 entries, one per layer; got 1"),
    (block(0, x, dilations=[1, -1]), ValueError, "`dilations[1]` must be at least 1; got -1"),
    (
        block(7, [z(6), z(6).half()]),
        ValueError,
        "`cond_biases[1]` must have the dtype of `h`, torch.float32; got torch.float16",
    ),
    (
        phased(0, z(2, 4, 5)),
        ValueError,
        "`h` must have P = 3 steps, one per phase of `cond_weights`, for each of the 2 of `cond`; got [2, 4, 5]",
    ),
    (phased(5, z(1, 8, 2)), ValueError, "`cond` must be [B, C_c, T / P], here [2, *, *]; got [1, 8, 2]"),
    (phased(5, None), ValueError, "`cond` must be given with `cond_weights[0]`; got None"),
    (
        phased(6, [z(3, 6, 8), z(2, 6, 8)]),
        ValueError,
        "`cond_weights[1]` must be [P, 2G, C_c], here [3, 6, 8]; got [2, 6, 8]",
    ),
    (phased(6, [z(3, 6, 8), z(6, 8)]), ValueError, "`cond_weights[1]` must be [P, 2G, C_c]; got [6, 8]"),
    (phased(6, [z(6, 8), z(3, 6, 8)]), ValueError, "`cond` must have 1 or T = 6 steps; got [2, 8, 2]"),
    (phased(6, [z(0, 6, 8)] * 2), ValueError, "`cond_weights[0]` must have at least one phase; got [0, 6, 8]"),
    (
        phased(7, [z(3, 6), z(2, 6)]),
        ValueError,
        "`cond_biases[1]` must be one value per row of its weight, here [3, 6]; got [2, 6]",
    ),
    (block(7, [z(1, 6)] * 2), ValueError, "`cond_biases[0]` must be one value per row of its weight; got [1, 6]"),
    (
        lambda: ops.affine_coupling(x, x, x, form="tanh"),
        ValueError,
        "`form` must be one of exp, sigmoid, additive; got 'tanh'",
    ),
    (
        lambda: ops.affine_coupling(x, x),
        ValueError,
        "`log_scale` must be None exactly when `form` is 'additive'; got None with 'exp'",
    ),
    (lambda: ops.affine_coupling(x, x, x, form="additive"), ValueError, "got [2, 4, 5] with 'additive'"),
    (
        lambda: ops.affine_coupling(x, z(2, 3, 5), x),
        ValueError,
        "`shift` must be [B, C, T] as `x`, here [2, 4, 5]; got [2, 3, 5]",
    ),
    (lambda: ops.invconv1x1(x, z(3, 3)), ValueError, "`weight` must be [C, C], here [4, 4]; got [3, 3]"),
    (
        lambda: ops.invconv1x1(x, z(4, 4), reverse=True),
        ValueError,
        "`weight` must be invertible; got a singular matrix [4, 4]",
    ),
    (lambda: ops.PLU.from_weight(z(4, 4)), ValueError, "`weight` must be invertible; got a singular matrix"),
    (lambda: ops.PLU.from_weight(z(4, 3)), ValueError, "`weight` must be [C, C], here [4, 4]; got [4, 3]"),
    (lambda: ops.actnorm(x, z(3), z(4)), ValueError, "`loc` must be [C], here [4]; got [3]"),
    (
        lambda: ops.actnorm(x, z(4), z(4).double()),
        ValueError,
        "`scale` must have the dtype of `x`, torch.float32; got torch.float64",
    ),
    (step(0, z(2, 5, 5), reverse=True), ValueError, "`x` must be [B, C, T] with C even; got [2, 5, 5]"),
    (step(0, x.long()), TypeError, "`x` must be a floating-point tensor; got torch.int64"),
    (step(1, z(2, 8, 4), reverse=True), ValueError, "`hidden` must be [B, S, T] of `x`, here [2, *, 5]; got [2, 8, 4]"),
    (step(2, z(2, 8), reverse=True), ValueError, "`end_weight` must be [C, S], here [4, 8]; got [2, 8]"),
    (
        step(2, z(4, 8), reverse=True, form="additive"),
        ValueError,
        "`end_weight` must be [C / 2, S], here [2, 8]; got [4, 8]",
    ),
    (
        step(3, z(8), reverse=True),
        ValueError,
        "`end_bias` must be one value per row of `end_weight`, here [4]; got [8]",
    ),
    (
        step(4, z(4, 3), reverse=True),
        ValueError,
        "`weight` must be [C - n_early, C - n_early], here [4, 4]; got [4, 3]",
    ),
    (
        step(5, None, n_early=2),
        ValueError,
        "`weight` must be [C - n_early, C - n_early], here [2, 2]; got [4, 4]",
    ),
    (step(5, None, n_early=4), ValueError, "`n_early` must leave at least one of the 4 channels of `x`; got 4"),
    (step(5, None, n_early=-1), ValueError, "`n_early` must leave at least one of the 4 channels of `x`; got -1"),
    (step(0, x, n_early=2, reverse=True), ValueError, "`n_early` must be 0 in reverse, where channels join; got 2"),
    (step(0, x), ValueError, "`early` must be None unless `reverse`; got [2, 2, 5]"),
    (step(5, z(2, 2, 6), reverse=True), ValueError, "`early` must be [B, E, T] of `x`, here [2, *, 5]; got [2, 2, 6]"),
    (
        step(0, x, reverse=True, form="glow"),
        ValueError,
        "`form` must be one of exp, sigmoid, additive; got 'glow'",
    ),
    (
        step(1, z(2, 8, 5).double(), reverse=True),
        ValueError,
        "`hidden` must have the dtype of `x`, torch.float32, or be half precision where that is float32; "
        "got torch.float64",
    ),
    (
        step(1, z(2, 8, 5).half(), reverse=True),
        ValueError,
        "`end_weight` must have the dtype of `hidden`, torch.float16; got torch.float32",
    ),
    (
        step(1, z(2, 8, 5, device="meta"), reverse=True),
        ValueError,
        "`hidden` must be on the device of `x`, cpu; got meta",
    ),
    (
        step(4, z(4, 4).half(), reverse=True),
        ValueError,
        "`weight` must have the dtype of `x`, torch.float32; got torch.float16",
    ),
    (
        step(5, z(2, 2, 5).double(), reverse=True),
        ValueError,
        "`early` must have the dtype of `x`, torch.float32; got torch.float64",
    ),
    (lambda: ops.actnorm_init(z(1, 4, 1)), ValueError, "`x` must have at least two steps to initialise from; got 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_arguments_are_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
