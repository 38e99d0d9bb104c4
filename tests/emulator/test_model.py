"""The emulator proves itself: each model against numpy, each check by a program that must fire it.

The programs are the toys of `csrc/emulator/toys.cu`. Most checks are fired by the toy "litmus", whose threads each run
steps that the test gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.emulator import library
from tests.emulator.litmus import NO_TENSOR, OUTSIDE, SCHEDULES, TOYS

Array = NDArray[Any]

pytestmark = pytest.mark.usefixtures("fresh")


def random(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def words(*shape: int) -> Array:
    return np.random.default_rng(2).integers(0, 1 << 30, shape, dtype=np.uint32)


# ---- numbers

SPECIAL = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 65504.0, 65519.99, 65520.0, 1e-8, 3e-8, 6e-5, 6.1e-5, 3.4e38, 1e-40]
LIMITS = [np.float32(2.0) ** -149, np.float32(2.0) ** -25, np.float32(2.0) ** -24 * 1.5, np.finfo(np.float32).max]


def ties(bits: int) -> Array:
    """Numbers halfway between two neighbours of `bits` significant bits, and those next to them."""
    steps = np.arange(64, dtype=np.float64) + 2.0 ** (bits - 1)
    halfway = ((steps + 0.5) * 2.0 ** (1 - bits)).astype(np.float32)
    return np.concatenate([halfway, np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(9))])


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_packing_rounds_to_nearest_even(emulator: Any, name: str, dtype: torch.dtype) -> None:
    x = np.concatenate(
        [np.array(SPECIAL + LIMITS, np.float32), ties(8), ties(11), random(512) * 1e-4, random(512) * 1e4]
    )
    x = np.ascontiguousarray(np.stack([x, -x[::-1]], 1))
    packed, back = np.zeros(len(x), np.uint32), np.zeros_like(x)
    emulator.toy(f"pack {name}", [x, packed, back], [len(x)])
    want = torch.from_numpy(x).to(dtype)
    nan = np.isnan(x)
    bits = np.stack([packed & 0xFFFF, packed >> 16], 1)
    assert np.array_equal(bits[~nan], want.view(torch.int16).numpy().view(np.uint16)[~nan])
    np.testing.assert_array_equal(back, want.float().numpy())


def test_tf32_and_tanh(emulator: Any) -> None:
    x = np.concatenate([np.array(SPECIAL + LIMITS, np.float32), ties(11), random(2000)])
    tf32, tanh = np.zeros(len(x), np.uint32), np.zeros_like(x)
    emulator.toy("convert", [x, tf32, tanh], [len(x)])
    mantissa, exponent = np.frexp(x.astype(np.float64))
    nearest = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2.0**11 + 0.5)  # ties away from zero
    normal = np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            tf32.view(np.float32)[normal], np.ldexp(nearest, exponent - 11)[normal].astype("f")
        )
    assert np.array_equal(tf32.view(np.float32)[~np.isfinite(x)], x[~np.isfinite(x)], equal_nan=True)
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(tanh - exact)
    assert (error <= 2.0**-11 * np.abs(exact))[normal | np.isinf(x)].all() and np.nanmax(error) > 2.0**-13
    assert np.array_equal(np.isnan(tanh), np.isnan(x))


def test_lanes_exchange(emulator: Any) -> None:
    x, y = random(32), random(32).astype(np.float64)
    out, sums = np.zeros((32, 3), np.float32), np.zeros(32)
    emulator.toy("exchange", [x, y, out, sums], [5, 9])
    lanes = np.arange(32)
    assert np.array_equal(out[:, 0], x[(lanes + 5) % 32]) and np.array_equal(out[:, 1], x[lanes ^ 9])
    np.testing.assert_allclose(out[:, 2], x.sum(dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums, y.sum(), rtol=1e-15, atol=1e-14)
    assert len(set(out[:, 2])) == len(set(sums)) == 1


# ---- fragments, as the PTX ISA has their layouts


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(emulator: Any, transposed: bool) -> None:
    matrices = words(4, 8, 8).astype(np.uint16)
    place = np.random.default_rng(3).permutation(40)[:32].astype(np.int32)
    got = np.zeros((32, 4), np.uint32)
    emulator.toy("load_matrix", [matrices, place, got], [int(transposed)], shared_bytes=640)
    lane = np.arange(32)
    row, column = lane // 4, lane % 4 * 2
    for i in range(4):
        matrix = matrices[i].T if transposed else matrices[i]
        assert np.array_equal(got[:, i], matrix[row, column] | matrix[row, column + 1].astype(np.uint32) << 16)


NAMES = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float32: "float"}


def as_bits(x: Array, dtype: torch.dtype) -> Array:
    t = torch.from_numpy(x.astype(np.float32)).to(dtype)
    return t.view(getattr(torch, f"int{8 * t.itemsize}")).numpy().view(f"u{t.itemsize}")


LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4
D_ROWS = np.stack([GROUP, GROUP, GROUP + 8, GROUP + 8], 1)
D_COLUMNS = np.stack([2 * MEMBER, 2 * MEMBER + 1] * 2, 1)


def fragments_16(a: Array, b: Array) -> tuple[Array, Array]:
    """m16n8k16: a_0 ... a_7 and b_0 ... b_3 of each lane, two in a register."""
    a_parts = [a[GROUP + (8 if i in (2, 3, 6, 7) else 0), 2 * MEMBER + i % 2 + (8 if i >= 4 else 0)] for i in range(8)]
    b_parts = [b[2 * MEMBER + i % 2 + (8 if i >= 2 else 0), GROUP] for i in range(4)]
    pairs = [np.ascontiguousarray(np.stack(parts, 1)).view(np.uint32) for parts in (a_parts, b_parts)]
    return pairs[0], pairs[1]


def fragments_32(a: Array, b: Array) -> tuple[Array, Array]:
    """m16n8k8 of tf32."""
    a_parts = [a[GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)] for i in range(4)]
    return np.stack(a_parts, 1), np.stack([b[MEMBER + 4 * i, GROUP] for i in range(2)], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_mma(emulator: Any, dtype: torch.dtype) -> None:
    """Sums of small integers are exact in any order."""
    depth = 8 if dtype == torch.float32 else 16
    integers = np.random.default_rng(4).integers
    a, b, c = integers(-9, 9, (16, depth)), integers(-9, 9, (depth, 8)), integers(-99, 99, (16, 8))
    a_bits, b_bits = as_bits(a, dtype), as_bits(b, dtype)
    if dtype == torch.float32:
        a_bits = a_bits | integers(0, 1 << 13, a.shape, dtype=np.uint32)  # which the product leaves out
    a_lanes, b_lanes = fragments_32(a_bits, b_bits) if dtype == torch.float32 else fragments_16(a_bits, b_bits)
    d = c[D_ROWS, D_COLUMNS].astype(np.float32)
    arrays = [np.ascontiguousarray(a_lanes), np.ascontiguousarray(b_lanes), d]
    emulator.toy(f"product {NAMES[dtype]}", arrays)
    assert np.array_equal(d, (a @ b + c)[D_ROWS, D_COLUMNS])


def swizzled(x: Array) -> Array:
    """[rows, 64] of 16 bits as the copy engine lays them in shared memory: piece p of row r at p ^ (r % 8)."""
    rows = np.arange(len(x))[:, None]
    return x.reshape(-1, 8, 8)[rows, np.arange(8) ^ rows % 8].reshape(x.shape)


@pytest.mark.parametrize(("dtype", "n"), [(torch.float16, 64), (torch.bfloat16, 128), (torch.float16, 256)], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_wgmma(emulator: Any, dtype: torch.dtype, n: int, accumulate: bool) -> None:
    """Two accumulators of two products each, one group each: the first of them can be read before the second."""
    integers = np.random.default_rng(5).integers
    a, b, c = integers(-9, 9, (64, 64)), integers(-9, 9, (n, 64)), integers(-99, 99, (2, 64, n))
    thread = np.arange(128)[:, None]
    i = np.arange(n // 2)
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    column = 8 * (i // 4) + 2 * (thread % 4) + i % 2
    d = np.ascontiguousarray(c[:, row, column], np.float32)
    early = np.zeros_like(d)
    arrays = [swizzled(as_bits(a, dtype)), swizzled(as_bits(b, dtype)), d, early]
    shape = {"threads": 128, "shared_bytes": 128 * (64 + n)}
    for schedule in SCHEDULES:
        emulator.schedule(schedule[0], schedule[1], delivery=schedule[2])
        d[:] = c[:, row, column]
        emulator.toy(f"warpgroup_product {NAMES[dtype]} {n}", arrays, [int(accumulate)], **shape)
        for j in range(2):
            want = a[:, 32 * j : 32 * j + 32] @ b[:, 32 * j : 32 * j + 32].T + (c[j] if accumulate else 0)
            assert np.array_equal(d[j], want[row, column])
        assert np.array_equal(early[0], d[0]) and np.isnan(early[1]).all()


# ---- toys that are right: results, and their mutants


def rotate(emulator: Any) -> None:
    x, got = words(96), np.zeros(96, np.uint32)
    emulator.toy("rotate", [x, got], [3, 33], threads=96, shared_bytes=384)
    for _ in range(3):
        x = x + np.roll(x, -33)
    assert np.array_equal(got, x)


def copies(emulator: Any) -> None:
    x, valid = words(5, 64, 4), words(5, 64) % 2
    got = np.zeros_like(x)
    emulator.toy("copies", [x, valid, got], [5], threads=64, shared_bytes=2048)
    assert np.array_equal(got, (x * valid[..., None])[:, ::-1])


def pipeline(emulator: Any) -> None:
    x, got = words(9, 32), np.zeros((9, 32), np.uint32)
    emulator.toy("pipeline", [x, got], [9], threads=64, shared_bytes=288)
    assert np.array_equal(got, x[:, np.arange(32) ^ 1])


def last_block(emulator: Any) -> None:
    x, got, counter, total = random(12, 32), np.zeros((12, 32), np.float32), np.zeros(1, np.uint32), np.zeros(1, "f")
    emulator.toy("last_block", [x, got, counter, total], blocks=12)
    assert np.array_equal(got, 2 * x) and counter == 12
    np.testing.assert_allclose(total, 2 * x.sum(dtype=np.float64), rtol=1e-5)


def in_turn(emulator: Any) -> None:
    x, flag = words(64), np.zeros(1, np.uint32)
    want = x.copy()
    emulator.toy("in_turn", [x, flag], blocks=6, threads=64)
    for block in range(6):
        want = 2 * want + np.uint32(block)
    assert np.array_equal(x, want) and flag == 6


def ring(emulator: Any) -> None:
    x, got, ranks = words(8, 64), np.zeros((8, 64), np.uint32), np.zeros(8, np.uint32)
    emulator.toy("ring", [x, got, ranks], blocks=8, threads=64, shared_bytes=256, cluster=4)
    assert np.array_equal(got, np.roll(x.reshape(2, 4, 64), -1, 1).reshape(8, 64))
    assert np.array_equal(ranks, [0, 1, 2, 3] * 2)


def load_box(emulator: Any, corner: tuple[int, int, int, int] = (-8, 1, -3, 0)) -> None:
    sizes, box = (72, 3, 10, 3), (64, 1, 8, 2)
    x = words(*sizes[::-1]).astype(np.uint16)
    got = np.zeros((16, 64), np.uint16)
    emulator.toy("box", [x, got], [*sizes, *box, *corner], threads=64, shared_bytes=4096)
    want = np.zeros(box[::-1], np.uint16)
    for place in np.ndindex(want.shape):
        at = tuple(c + i for c, i in zip(corner[::-1], place, strict=True))
        if all(0 <= c < size for c, size in zip(at, x.shape, strict=True)):
            want[place] = x[at]
    assert np.array_equal(got, swizzled(want.reshape(16, 64)))


def multicast(emulator: Any) -> None:
    x = words(4 * 5 * 8, 64).astype(np.uint16)
    got = np.zeros((4, *x.shape), np.uint16)
    numbers = [64, len(x), 1, 1, 64, 8, 1, 1, 5]
    emulator.toy("multicast", [x, got], numbers, blocks=4, threads=64, shared_bytes=1024 + 2 * 4096, cluster=4)
    assert np.array_equal(got, np.stack([swizzled(x)] * 4))


def published_box(emulator: Any) -> None:
    x, got, flag = words(8, 32), np.zeros((8, 64), np.uint16), np.zeros(1, np.uint32)
    want = (2 * x).view(np.uint16)
    emulator.toy("published_box", [x, got, flag], [64, 8, 1, 1, 64, 8, 1, 1], blocks=2, shared_bytes=2048)
    assert np.array_equal(got, swizzled(want))


def warpgroup(emulator: Any) -> None:
    test_wgmma(emulator, torch.float16, 64, False)


def registers(emulator: Any) -> None:
    got = np.zeros(384, np.uint32)
    emulator.toy("registers", [got], threads=384)
    assert got.all()


PROGRAMS: tuple[Callable[[Any], None], ...] = (
    rotate,
    copies,
    pipeline,
    last_block,
    in_turn,
    ring,
    load_box,
    multicast,
    published_box,
    registers,
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_right_under_all_schedules(emulator: Any, program: Callable[[Any], None]) -> None:
    for name, seed, delivery in SCHEDULES:
        emulator.schedule(name, seed, delivery=delivery)
        program(emulator)


@pytest.mark.parametrize("program", [*PROGRAMS, warpgroup], ids=lambda p: p.__name__)
def test_every_missing_synchronisation_is_noticed(emulator: Any, program: Callable[[Any], None]) -> None:
    emulator.forget_sites()
    program(emulator)
    for site in emulator.sites():
        if not site["synchronises"]:
            continue
        noticed = 0
        for name, seed, delivery in SCHEDULES:
            emulator.skip(site["index"])
            emulator.schedule(name, seed, delivery=delivery)
            try:
                program(emulator)
            except (emulator.EmulationError, AssertionError):
                noticed += 1
            emulator.heal()
        assert noticed, f"{site['kind']} at {site['file']}:{site['line']}"


@pytest.mark.parametrize(
    "corner", [(0, 0, 0, 0), (8, 2, 2, 1), (-64, 0, 0, 0), (72, 0, 0, 0), (-1, 1, 9, 2), (3, -1, -8, -1), (5, 3, 10, 3)]
)
def test_boxes_have_zeros_outside_of_the_tensor(emulator: Any, corner: tuple[int, int, int]) -> None:
    load_box(emulator, corner)


def test_atomic_additions(emulator: Any) -> None:
    """Every one counts, and in which order is up to the schedule and its seed: the same run for the same seed."""

    def run(name: str, seed: int) -> tuple[list[int], Any]:
        emulator.schedule(name, seed)
        x, ticket = np.zeros(3, np.uint64), np.zeros((3, 64), np.uint32)
        emulator.toy("tickets", [x, ticket], blocks=3, threads=64)
        assert x[:1].view(np.float32)[0] == x[1:2].view(np.float64)[0] == x[2] == 192
        assert np.array_equal(np.sort(ticket.ravel()), np.arange(192))
        return ticket.ravel().tolist(), emulator.statistics()[0]

    runs = [("in order", 0), ("reverse", 0), ("one warp first", 3), ("one warp last", 0), ("random", 1), ("random", 2)]
    tickets = [run(*how) for how in runs]
    assert tickets == [run(*how) for how in runs]
    assert len({tuple(ticket) for ticket, _ in tickets}) == len(runs)


def test_older_devices(emulator: Any) -> None:
    emulator.device(capability=80)
    with pytest.raises(emulator.EmulationError, match="invalid launch: clusters need sm_90"):
        ring(emulator)
    emulator.device(capability=75)
    x, got = words(32), np.zeros(32, np.uint32)
    emulator.toy("rotate", [x, got], [1, 1], shared_bytes=64 << 10)  # all that there is
    assert np.array_equal(got, x + np.roll(x, -1))


# ---- faults


def site_of(emulator: Any, program: Callable[[Any], None], kind: str) -> dict[str, Any]:
    emulator.forget_sites()
    program(emulator)
    return next(site for site in emulator.sites() if site["kind"] == kind)


@pytest.mark.parametrize(
    ("program", "kind", "operand", "by", "message"),
    [
        (rotate, "load_shared", "address", 1 << 14, OUTSIDE.replace("0x4400", "0x580")),
        (rotate, "store_shared", "address", 2, "not on a boundary of 4 bytes"),
        (rotate, "load_global", "address", -4, NO_TENSOR),
        (copies, "copy_async_16", "destination", 1024, "of the block's|yet to write|nothing orders"),
        (copies, "copy_async_16", "source", 16 * 5 * 64, NO_TENSOR),
        (copies, "copy_wait", "groups", 1, "has yet to write"),
        (pipeline, "mbarrier_init", "count", 1, "deadlock"),
        (pipeline, "mbarrier_init", "address", 8, "is initialised twice"),
        (pipeline, "mbarrier_arrive", "address", 8, "deadlock"),
        (pipeline, "mbarrier_wait", "parity", 1, "deadlock|nobody has written"),
        (in_turn, "wait_at_least", "value", 1, "deadlock"),
        (in_turn, "add_release", "address", 4, NO_TENSOR),
        (ring, "store_shared_cluster", "rank", 1, "nobody has written|nothing orders|there is no block"),
        (load_box, "mbarrier_arrive_expect", "bytes", 16, "deadlock"),
        (load_box, "tma_load", "destination", 2048, "is outside of the block's"),
        (load_box, "tma_load", "c0", 1, ""),
        (load_box, "tma_load", "c1", 1, ""),
        (load_box, "tma_load", "c2", 1, ""),
        (load_box, "tma_load", "c3", 1, ""),
        (multicast, "mbarrier_arrive_cluster", "rank", 1, "there is no block 4 in a cluster of 4"),
        (warpgroup, "wgmma", "a", 16, ""),
        (warpgroup, "wgmma", "b", -1024, ""),
        (warpgroup, "wgmma_wait", "groups", 1, ""),
    ],
    ids=lambda v: v if isinstance(v, str) and len(v) < 24 else getattr(v, "__name__", " "),
)
def test_shifted_operands(
    emulator: Any, program: Callable[[Any], None], kind: str, operand: str, by: int, message: str
) -> None:
    """An error with that message, or wrong results."""
    site = site_of(emulator, program, kind)
    emulator.shift(site["index"], by, site["operands"].index(operand))
    with pytest.raises(emulator.EmulationError if message else AssertionError, match=message or None):
        program(emulator)
    emulator.heal()
    program(emulator)


def test_sites(emulator: Any) -> None:
    site = site_of(emulator, rotate, "load_shared")
    line = (library.ROOT / site["file"]).read_text().splitlines()[site["line"] - 1]
    assert site["file"] == TOYS and "arch::load_shared<uint32_t>" in line
    assert site["calls"] == 3 * 96 and site["bytes"] == 4 and not site["synchronises"]
    (barrier, *_) = (s for s in emulator.sites() if s["kind"] == "sync_threads")
    assert barrier["synchronises"] and barrier["operands"] == []
    (launch,) = emulator.statistics()
    assert (launch["kernel"], launch["blocks"], launch["threads"], launch["barriers"]) == ("toys::rotate", 1, 96, 6)
    assert launch["shared_read"] == launch["shared_written"] == 3 * 96 * 4
    assert launch["global_read"] == launch["global_written"] == 96 * 4


def test_what_does_not_exist(emulator: Any) -> None:
    with pytest.raises(IndexError):
        emulator.skip(1 << 20)
    with pytest.raises(ValueError, match="no such operand"):
        emulator.shift(site_of(emulator, rotate, "load_shared")["index"], 1, 5)
    for wrong in (lambda: emulator.schedule("sideways"), lambda: emulator.schedule(delivery="never")):
        with pytest.raises(ValueError, match="no such"):
            wrong()
    with pytest.raises(ValueError, match="no device of that capability"):
        emulator.device(capability=60)
    with pytest.raises(ValueError, match="room for a block"):
        emulator.device(multiprocessors=0)
    with pytest.raises(ValueError, match="no such toy"):
        emulator.toy("none", [])
