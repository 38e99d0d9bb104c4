"""SqueezeWave's stack in the CPU library, against the formula in plain PyTorch and float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops import registry
from tests.ops.cases import LENGTHS

if not registry.status()[1].can_run:
    pytest.skip(f"the cpu backend cannot run: {registry.status()[1].reason}", allow_module_level=True)

KERNEL = torch.ops.fastflow_cpu.separable_wn
DTYPES = [torch.float32, torch.float64]


def arguments(
    dtype: torch.dtype, frames: int, repeat: int = 1, channels: int = 12, layers: int = 3, batch: int = 2
) -> list[Tensor]:
    """Arguments in the schema's order; each frame of the conditioning serves `repeat` steps."""

    def r(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, dtype=dtype)

    return [
        r(batch, channels, frames * repeat),
        r(batch, 2 * channels * layers, frames),
        r(layers, channels, scale=0.5),
        r(layers, channels, scale=0.5),
        r(layers, channels, 3, scale=0.5),
        r(layers, 2 * channels, channels, scale=max(1, channels) ** -0.5),
        r(layers, 2 * channels),
        r(layers, channels, channels, scale=max(1, channels) ** -0.5),
        r(layers, channels),
    ]


def formula(
    h: Tensor,
    cond: Tensor,
    scale: Tensor,
    shift: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    res_weight: Tensor,
    res_bias: Tensor,
) -> Tensor:
    repeat = h.shape[2] // cond.shape[2]
    for i, added in enumerate(cond.repeat_interleave(repeat, 2).chunk(len(scale), 1)):
        x = h * scale[i, :, None] + shift[i, :, None]
        d = F.conv1d(x, taps[i, :, None], padding=1, groups=h.shape[1])
        first, second = (weight[i] @ d + bias[i, :, None] + added).chunk(2, 1)
        h = h + res_weight[i] @ (torch.tanh(first) * torch.sigmoid(second)) + res_bias[i, :, None]
    return h


def check(given: list[Tensor]) -> None:
    got = KERNEL(*given)
    assert got.dtype == given[0].dtype and got.shape == given[0].shape and got.is_contiguous()
    if got.numel():
        torch.testing.assert_close(got.double(), formula(*(t.double() for t in given)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("repeat", [1, 2, 3, 16])
def test_lengths(repeat: int, dtype: torch.dtype) -> None:
    for frames in (*LENGTHS, 300):
        if frames * repeat <= 600:
            check(arguments(dtype, frames, repeat))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 5, 7, 25, 64])
def test_channels(channels: int, dtype: torch.dtype) -> None:
    for layers in (1, 2):
        check(arguments(dtype, 21, 2, channels, layers))


@pytest.mark.parametrize("empty", [{"channels": 0}, {"batch": 0}, {"frames": 0}])
def test_nothing_to_do(empty: dict[str, int]) -> None:
    check(arguments(torch.float32, **{"frames": 3} | empty))


def test_every_layout_gives_the_same_bits() -> None:
    given = arguments(torch.float32, 23, 2)
    expected = KERNEL(*given)
    for i, tensor in enumerate(given):
        wide = torch.full((*(n + 2 for n in tensor.shape[:-1]), 2 * tensor.shape[-1] + 3), float("nan"))
        view = wide[tuple(slice(1, 1 + n) for n in tensor.shape[:-1])][..., 3::2]
        for other in (tensor.transpose(0, -1).contiguous().transpose(0, -1), view.copy_(tensor)):
            assert torch.equal(KERNEL(*given[:i], other, *given[i + 1 :]), expected), i


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        for frames in (16, 131, 900):
            given, results = arguments(dtype, frames, 2, channels=64), []
            for threads in (1, 2, 7):
                torch.set_num_threads(threads)
                results.append(KERNEL(*given))
            assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        torch.set_num_threads(before)


def test_a_nan_reaches_only_the_steps_beside_it() -> None:
    given = arguments(torch.float32, 60, layers=2, batch=1)
    given[0][0, 3, 31] = float("nan")
    steps = KERNEL(*given).isnan().any(1)[0].nonzero().flatten()
    assert steps.tolist() == [29, 30, 31, 32, 33]


BAD = [
    (0, (2, 12), r"`h` must be \[B, C, T\]"),
    (0, (2, 12, 7), r"`h` must have a multiple of the 4 steps of `cond`; got \[2, 12, 7\]"),
    (0, (2, 11, 8), r"`scale` must be \[L, C\] = \[3, 11\]; got \[3, 12\]"),
    (1, (2, 71, 4), r"`cond` must be \[B, 2 C L, F\] = \[2, 72, 4\]; got \[2, 71, 4\]"),
    (1, (2, 72, 0), r"`h` must have a multiple of the 0 steps of `cond`; got \[2, 12, 8\]"),
    (2, (0, 12), r"`scale` must have at least one layer; got \[0, 12\]"),
    (3, (3, 11), r"`shift` must be \[L, C\]"),
    (4, (3, 12, 5), r"`taps` must be \[L, C, 3\]"),
    (5, (3, 12, 12), r"`weight` must be \[L, 2 C, C\]"),
    (6, (3, 12), r"`bias` must be \[L, 2 C\]"),
    (7, (3, 24, 12), r"`res_weight` must be \[L, C, C\]"),
    (8, (12,), r"`res_bias` must be \[L, C\]"),
]


@pytest.mark.parametrize(("place", "shape", "message"), BAD)
def test_what_does_not_fit_is_named(place: int, shape: tuple[int, ...], message: str) -> None:
    given = arguments(torch.float32, 4, 2)
    given[place] = torch.zeros(shape)
    with pytest.raises((ValueError, RuntimeError), match=message):
        KERNEL(*given)


def test_other_dtypes_are_named() -> None:
    given = arguments(torch.float32, 4)
    with pytest.raises((ValueError, RuntimeError), match="`h` must be float32 or float64 for the cpu backend"):
        KERNEL(*(t.half() for t in given))
    with pytest.raises((ValueError, RuntimeError), match="`taps` must be float32 like the first argument"):
        KERNEL(*given[:4], given[4].double(), *given[5:])


# Processors differ: kernels that this one would not choose must be right too, or be refused by name.
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_each_instruction_set(isa: str) -> None:
    program = """
import torch
from tests.ops import test_separable_wn as t
torch.manual_seed(0)
for dtype in t.DTYPES:
    for repeat in (1, 2, 3):
        for frames in (1, 2, 16, 23, 131):
            t.check(t.arguments(dtype, frames, repeat, channels=25))
    t.test_the_same_bits_on_any_number_of_threads(dtype)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FASTFLOW_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = isa != "baseline" and "`FASTFLOW_CPU_ISA` must be one of baseline" in result.stderr
    assert refused or result.returncode == 0, result.stderr
