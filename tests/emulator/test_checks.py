"""Each check of the emulator is fired by a small program, and says what is wrong, and where."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.emulator.litmus import (
    ALL,
    BARRIER,
    BY_ALL,
    EARLY,
    LATE,
    NO_TENSOR,
    OUTSIDE,
    PRODUCT,
    REST,
    STORED,
    TOYS,
    Litmus,
    Steps,
    both,
    boxed,
    check,
    in_cluster,
    of_cluster,
    of_warpgroup,
    one,
    with_tiles,
)

pytestmark = pytest.mark.usefixtures("fresh")


# Two accesses to a word, in each of the ways in which they can collide.
COLLISIONS = {
    "read after write": ("store", "load", "reads what thread 0 of .* wrote"),
    "write after read": ("load", "store", "writes over what thread 0 of .* reads"),
    "write after write": ("store", "store", "writes over what thread 0 of .* wrote"),
}


def together(first: Steps, second: Steps, how: str, ordered: bool) -> tuple[dict[Any, Steps], int]:
    """`first` by thread 0, `second` by another one, and what orders the two; the programs and a cluster's size."""

    def meet(step: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return [step] if ordered else [("nothing",)]

    start: Steps = [("sync_threads",)]
    made: Steps = [("store_shared", 0, 1), ("mbarrier_init", 64, 1), ("fence_mbarrier_init",), *start]
    if how == "lanes":
        end = meet(("sync_warp",))
        return {
            (0, 0, 0): [*made, *first, *end],
            (0, 0, 1): [*start, *end, *second],
            (0, 0, range(2, 32)): [*start, *end],
            (0, 1): start,
        }, 1
    if how in ("sync_threads", "named barrier", "arrive and sync", "mbarrier", "flag of a warp"):
        a, b = {
            "sync_threads": (("sync_threads",), ("sync_threads",)),
            "named barrier": (("named_barrier_sync", 1, 64), ("named_barrier_sync", 1, 64)),
            "arrive and sync": (("named_barrier_arrive", 1, 64), ("named_barrier_sync", 1, 64)),
            "mbarrier": (("mbarrier_arrive", 64), ("mbarrier_wait", 64, 0)),
            "flag of a warp": (("add_release", 64, 1), ("wait_at_least", 64, 1)),
        }[how]
        if how in ("mbarrier", "flag of a warp"):
            return {
                (0, 0, 0): [*made, *first, *meet(a)],
                (0, 0, REST): start,
                (0, 1, 0): [*start, *meet(b), *second],
                (0, 1, REST): start,
            }, 1
        return {
            (0, 0, 0): [*made, *first, *meet(a)],
            (0, 0, REST): [*start, *meet(a)],
            (0, 1, 0): [*start, *meet(b), *second],
            (0, 1, REST): [*start, *meet(b)],
        }, 1
    if how == "flag":
        release = ("add_release", 64, 1) if ordered else ("atomic_add", 64, 1)
        return {(0, 0, 0): [*first, release], (1, 0, 0): [("wait_at_least", 64, 1), *second]}, 1
    if how == "fence and atomic":
        return {
            (0, 0, 0): [*first, *meet(("fence",)), ("atomic_add", 64, 1)],
            (1, 0, 0): [("wait_at_least", 64, 1), *second],
        }, 1
    if how == "cluster":
        end = meet(("cluster_sync",))
        both = {(block, warp, REST if warp == 0 else ALL): [*start, *end] for block in (0, 1) for warp in (0, 1)}
        return {**both, (0, 0, 0): [*start, *first, *end], (1, 0, 0): [*start, *end, *second]}, 2
    raise AssertionError(how)


IN_BLOCK = ("lanes", "sync_threads", "named barrier", "arrive and sync", "mbarrier", "flag of a warp")
WAYS = [("shared", how) for how in IN_BLOCK] + [
    ("global", how) for how in (*IN_BLOCK, "flag", "fence and atomic", "cluster")
]


@pytest.mark.parametrize(("memory", "how"), WAYS, ids=str)
@pytest.mark.parametrize("collision", COLLISIONS)
def test_races(emulator: Any, memory: str, how: str, collision: str) -> None:
    """Found under every schedule, as the collision that is expected where thread 0 comes first."""
    *kinds, text = COLLISIONS[collision]
    first, second = [(f"{kind}_{memory}", 0, 5) for kind in kinds]
    programs, cluster = together([first], [second], how, ordered=True)
    check(emulator, Litmus("right", programs, cluster=cluster))
    programs, cluster = together([first], [second], how, ordered=False)
    messages = check(emulator, Litmus("wrong", programs, "nothing orders the two", cluster=cluster))
    place = rf"\(\w+_{memory} at {TOYS}:\d+\), and nothing orders the two; {memory} memory at 0x"
    assert any(re.search(f"{text} {place}", message) for message in messages), messages


def by_name(*cases: Litmus) -> Any:
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


RIGHT = (
    Litmus("a word again and again", one(STORED, ("load_shared", 0), STORED, ("load_shared", 0))),
    Litmus("halves of a word", {(0, w, 0): [("store_shared half", 2 * w, 1)] for w in (0, 1)}),
    Litmus("a copy", one(("copy_async_16", 0, 16, 1), ("copy_commit",), ("copy_wait 0",), ("load_shared", 12))),
    Litmus(
        "an older copy",
        one(
            ("copy_async_16", 0, 16, 1),
            ("copy_commit",),
            ("copy_async_16", 16, 16, 0),
            ("copy_commit",),
            ("copy_wait 1",),
            ("load_shared", 12),
            ("copy_wait 0",),
            ("load_shared", 16),
        ),
    ),
    Litmus("a box", boxed(1024, ("mbarrier_wait", BARRIER, 0), ("load_shared", 1020))),
    Litmus("two atomic operations", {(b, 0): [("atomic_add", 0, 1)] for b in (0, 1)}),
    Litmus(
        "a word that two have read",
        {
            (0, 0, 0): [("load_global", 0), ("add_release", 64, 1)],
            (0, 1, 0): [("load_global", 0), ("add_release", 64, 1)],
            (0, 2, 0): [("wait_at_least", 64, 2), ("store_global", 0, 1)],
        },
        threads=96,
    ),
    Litmus("several readers", {(b, w): [("load_global", 0)] for b in (0, 1) for w in (0, 1)}),
    Litmus(
        "polling a flag",
        {
            (0, 0, 0): [("store_global", 64, 1), ("add_release", 0, 1)],
            (1, 0, 0): [*[("load_acquire", 0)] * 5, ("wait_at_least", 0, 1), ("load_global", 64)],
        },
    ),
    Litmus(
        "phases",
        both(
            [("mbarrier_arrive", BARRIER), ("mbarrier_wait", BARRIER, 0), ("mbarrier_arrive", BARRIER)],
            [
                ("mbarrier_arrive", BARRIER),
                ("mbarrier_wait", BARRIER, 0),
                ("mbarrier_arrive", BARRIER),
                ("mbarrier_wait", BARRIER, 1),
            ],
        ),
    ),
    Litmus(
        "a fenced box over what was stored",
        one(STORED, ("fence_proxy_async_shared",), *boxed(1024, ("mbarrier_wait", BARRIER, 0))[0, 0, 0]),
    ),
    Litmus(
        "a fenced box of what was stored",
        one(("store_global", 0, 1), ("fence_proxy_async",), *boxed(1024, ("mbarrier_wait", BARRIER, 0))[0, 0, 0]),
    ),
    Litmus("products", with_tiles(*PRODUCT, ("wgmma", 0, 8192, 0), ("wgmma_commit",), ("wgmma_wait 0",)), threads=128),
    of_cluster(
        "a peer's memory",
        {
            **{(b, 0, REST): [("cluster_sync",), ("nothing",), ("cluster_arrive",), ("cluster_wait",)] for b in (0, 1)},
            (0, 0, 0): [("cluster_sync",), ("store_shared_cluster", 0, 1, 7), ("cluster_arrive",), ("cluster_wait",)],
            (1, 0, 0): [("cluster_sync",), ("nothing",), ("cluster_arrive",), ("cluster_wait",), ("load_shared", 0)],
        },
    ),
)

WRONG = (
    # memory
    Litmus("below shared memory", one(("load_shared", -4)), OUTSIDE),
    Litmus("past shared memory", one(("store_shared", 16384, 1)), OUTSIDE),
    Litmus("half past shared memory", one(("store_shared 16", 16384 - 12, 1)), "not on a boundary of 16 bytes"),
    Litmus(
        "shared off its boundary", one(("load_shared", 2)), "shared memory at 0x402 is not on a boundary of 4 bytes"
    ),
    Litmus("before global memory", one(("load_global", -4)), NO_TENSOR),
    Litmus("past global memory", one(("store_global", 4096, 1)), NO_TENSOR),
    Litmus("global off its boundary", one(("load_global", 2)), "global memory at .* is not on a boundary of 4 bytes"),
    Litmus("an atomic operation outside", one(("atomic_add", 4096, 1)), NO_TENSOR),
    Litmus("a flag outside", one(("wait_at_least", 4096, 0)), NO_TENSOR),
    Litmus(
        "unwritten", one(("load_shared", 0)), "load_shared .*: reads what nobody has written; shared memory at 0x400"
    ),
    Litmus("half unwritten", one(("store_shared half", 0, 1), ("load_shared", 0)), "nobody has written; .* at 0x402"),
    Litmus("unwritten matrix", {(0, 0): [("load_matrix_x4", 0)]}, "load_matrix_x4 .* reads what nobody has written"),
    Litmus("matrix off its boundary", {(0, 0): [("load_matrix_x4", 4)]}, "not on a boundary of 16 bytes"),
    Litmus(
        "an atomic and a plain operation",
        {(0, 0, 0): [("atomic_add", 0, 1)], (1, 0, 0): [("load_global", 0)]},
        "reads what .* wrote|writes over what .* reads",
    ),
    # lanes and warps
    Litmus("not a whole warp", {(0, 1): [("sync_warp",)]}, "needs a whole warp", threads=40),
    Litmus(
        "a word that two have read, and one has said so",
        {
            (0, 0, 0): [("load_global", 0), ("add_release", 64, 1)],
            (0, 1, 0): [("load_global", 0)],
            (0, 2, 0): [("wait_at_least", 64, 1), ("store_global", 0, 1)],
        },
        "writes over what thread 32 .* reads|reads what thread 64 .* wrote",
        threads=96,
    ),
    Litmus(
        "half of what several have read",
        {(0, w, 0): [("load_global 16", 0), ("nothing",), ("store_global", 4 * w, 1)] for w in range(3)},
        "writes over what .* reads|reads what .* wrote",
        threads=96,
    ),
    Litmus(
        "lanes that have left",
        {(0, 0, range(31)): [("sync_warp",)], (0, 0, 31): [("leave",)]},
        "leaves the kernel while other lanes of its warp are in sync_warp|needs all lanes of the warp",
    ),
    Litmus(
        "leaving first",
        {(0, 0, 0): [("leave",)], (0, 0, REST): [("sync_warp",)]},
        "needs all lanes of the warp, and some have left the kernel",
        schedules=EARLY,
    ),
    Litmus(
        "leaving last",
        {(0, 0, range(31)): [("sync_warp",)], (0, 0, 31): [("leave",)]},
        "thread 31 .*, leaves the kernel while other lanes of its warp are in sync_warp",
        schedules=EARLY,
    ),
    Litmus(
        "lanes go different ways",
        {(0, 0, range(16)): [("sync_warp",)], (0, 0, range(16, 32)): [("sync_warp elsewhere",)]},
        "the warp's lanes have gone different ways: others are in sync_warp",
    ),
    Litmus("lane 32", {(0, 0): [("shuffle_xor", 1, 32)]}, "asks for lane 32"),
    Litmus("not all warps", {(0, 0): [("sync_threads",)]}, "only 32 of 64 threads have come to its barrier 0|deadlock"),
    Litmus(
        "lanes at different barriers",
        {(0, 0, lane): [("named_barrier_sync", 1 + lane % 2, 64)] for lane in ALL},
        "lanes name different barriers or counts",
    ),
    Litmus(
        "different counts",
        {(0, w): [("named_barrier_sync", 1, 64 + 32 * w)] for w in (0, 1)},
        "barrier 1 is called for (96|64) threads; others called it for (64|96)",
        threads=96,
    ),
    Litmus(
        "twice at a barrier",
        {(0, 0): [("named_barrier_arrive", 1, 64)] * 2},
        "comes to barrier 1 again before the others",
    ),
    Litmus("barrier 0 by name", {(0, 0): [("named_barrier_sync", 0, 64)]}, "there are barriers 1 to 15; got 0"),
    Litmus("barrier 16", {(0, 0): [("named_barrier_arrive", 16, 64)]}, "there are barriers 1 to 15; got 16"),
    Litmus(
        "barrier of 33", {(0, 0): [("named_barrier_sync", 1, 33)]}, "multiple of 32 of the block's 64 threads; got 33"
    ),
    Litmus(
        "barrier of 96", {(0, 0): [("named_barrier_sync", 1, 96)]}, "multiple of 32 of the block's 64 threads; got 96"
    ),
    Litmus(
        "an awaited barrier",
        {(0, 0): [("named_barrier_arrive", 3, 64)]},
        "only 32 of 64 threads have come to its barrier 3",
    ),
    # cp.async
    Litmus(
        "reading a copy early",
        one(("copy_async_16", 0, 0, 1), ("copy_commit",), ("load_shared", 0), ("copy_wait 0",)),
        r"touches what an asynchronous copy \(copy_async_16 at .*, of thread 0 .*\) has yet to write",
    ),
    Litmus("writing over a copy", one(("copy_async_16", 0, 0, 1), STORED, ("copy_commit",)), "has yet to write"),
    Litmus(
        "waiting for too few copies",
        one(("copy_async_16", 0, 0, 1), ("copy_commit",), ("copy_wait 1",), ("load_shared", 0)),
        "has yet to write",
    ),
    Litmus(
        "another's copy",
        {
            (0, 0, 0): [("copy_async_16", 0, 0, 1), ("copy_commit",), *BY_ALL, ("copy_wait 0",)],
            (0, 0, REST): BY_ALL,
            (0, 1): [*BY_ALL, ("load_shared", 0)],
        },
        "has yet to write|nothing orders the two",
    ),
    Litmus("never committed", one(("copy_async_16", 0, 0, 1)), "copies .* that it never committed"),
    Litmus("never awaited", one(("copy_async_16", 0, 0, 1), ("copy_commit",)), "copies .* that it never waited for"),
    Litmus(
        "copy to off its boundary", one(("copy_async_16", 8, 0, 1)), "shared memory .* not on a boundary of 16 bytes"
    ),
    Litmus(
        "copy from off its boundary", one(("copy_async_16", 0, 8, 1)), "global memory .* not on a boundary of 16 bytes"
    ),
    Litmus("zeros from nowhere", one(("copy_async_16", 0, 4096, 0)), NO_TENSOR),
    # mbarriers
    Litmus("no mbarrier", one(("mbarrier_arrive", BARRIER)), "there is no initialised mbarrier at 0x2400 of block 0"),
    Litmus(
        "unordered mbarrier",
        {(0, 0, 0): [("mbarrier_init", BARRIER, 1)], (0, 1, 0): [("mbarrier_arrive", BARRIER)]},
        "nothing orders this after the mbarrier's initialisation|there is no initialised mbarrier",
    ),
    Litmus(
        "unordered mbarrier in order",
        {(0, 0, 0): [("mbarrier_init", BARRIER, 1)], (0, 1, 0): [("mbarrier_arrive", BARRIER)]},
        rf"nothing orders this after the mbarrier's initialisation \({TOYS}:\d+\)",
        schedules=EARLY,
    ),
    Litmus(
        "initialised twice", one(*[("mbarrier_init", BARRIER, 1)] * 2), "the mbarrier at 0x2400 is initialised twice"
    ),
    Litmus("too many mbarriers", one(*[("mbarrier_init", 8 * i, 1) for i in range(65)]), "room for 64 mbarriers"),
    Litmus("mbarrier off its boundary", one(("mbarrier_init", 4, 1)), "not on a boundary of 8 bytes"),
    Litmus("a count of 0", one(("mbarrier_init", BARRIER, 0)), r"the count must be from 1 to 2\^20 - 1; got 0"),
    Litmus("a count of 2^20", one(("mbarrier_init", BARRIER, 1 << 20)), "the count must be .*; got 1048576"),
    Litmus(
        "reading an mbarrier",
        one(("mbarrier_init", BARRIER, 1), ("load_shared", BARRIER)),
        "touches the words of an mbarrier",
    ),
    Litmus(
        "writing an mbarrier",
        one(("mbarrier_init", BARRIER, 1), ("store_shared", BARRIER + 4, 0)),
        "the words of an mbarrier",
    ),
    Litmus(
        "too many arrivals",
        one(("mbarrier_init", BARRIER, 1), ("mbarrier_arrive_expect", BARRIER, 16), ("mbarrier_arrive", BARRIER)),
        r"arrives too often .*: all 1 arrivals of the phase are there \(16 bytes are missing\)",
    ),
    of_cluster(
        "too many arrivals from afar",
        in_cluster(
            [("mbarrier_arrive_cluster", BARRIER, 1)],
            [("mbarrier_arrive_expect", BARRIER, 16), ("mbarrier_wait", BARRIER, 0)],
            start=[("mbarrier_init", BARRIER, 1), ("fence_mbarrier_init",), ("cluster_sync",)],
        )
        | {(b, 0, REST): [("nothing",), ("nothing",), ("cluster_sync",)] for b in (0, 1)},
        r"thread 0 of block \(0,0,0\) .*, mbarrier_arrive_cluster at .*: arrives too often",
        schedules=LATE,
    ),
    Litmus(
        "too many bytes",
        one(("mbarrier_init", BARRIER, 1), ("mbarrier_arrive_expect", BARRIER, 1 << 20)),
        r"an mbarrier can expect less than 2\^20 bytes; got 1048576",
    ),
    Litmus("parity 2", one(("mbarrier_init", BARRIER, 1), ("mbarrier_wait", BARRIER, 2)), "a parity is 0 or 1; got 2"),
    Litmus(
        "a missing arrival",
        both([("mbarrier_arrive", BARRIER)], [("mbarrier_wait", BARRIER, 0)]),
        r"(?s)deadlock: .*mbarrier_wait at .*: parity 0 of the mbarrier at 0x2400 \(0 phases have ended, 1 of 2 "
        r"arrivals and 0 bytes are missing\)\n    block \(0,0,0\) warp 1 lane 0$",
    ),
    Litmus(
        "the wrong parity",
        both(
            [STORED, ("mbarrier_arrive", BARRIER)],
            [("mbarrier_arrive", BARRIER), ("mbarrier_wait", BARRIER, 1), ("load_shared", 0)],
        ),
        "deadlock(?s:.*)parity 1 of the mbarrier|reads what nobody has written|nothing orders the two",
    ),
    Litmus(
        "a phase overrun",
        both([("mbarrier_arrive", BARRIER)] * 2 + [("mbarrier_wait", BARRIER, 0)], [("mbarrier_arrive", BARRIER)] * 2),
        r"deadlock(?s:.*)parity 0 of the mbarrier at 0x2400 \(2 phases have ended, 2 of 2 arrivals",
        schedules=EARLY,
    ),
    # the copy engine
    Litmus(
        "a box without the fence",
        boxed(1024, fence=False),
        "no fence_mbarrier_init makes the mbarrier's initialisation .* visible",
    ),
    Litmus("a box off its boundary", boxed(1024, to=512), "not on a boundary of 1024 bytes"),
    Litmus("a box outside", boxed(1024, to=16384), OUTSIDE),
    Litmus(
        "a box of other memory",
        one(("mbarrier_init", BARRIER, 1), ("fence_mbarrier_init",), ("tma_load", 0, 0, 0)),
        "there is no initialised mbarrier at 0x400",
    ),
    Litmus(
        "reading a box early",
        boxed(1024, ("load_shared", 0)),
        r"touches what an asynchronous copy \(tma_load at .*, of the copy engine of block \(0,0,0\)\)|nothing orders",
    ),
    Litmus("a box under way", boxed(1024), "leaves the kernel while tma_load at .* is still under way", schedules=LATE),
    Litmus("more bytes than come", boxed(1040), "has 16 bytes that were expected and never came", schedules=EARLY),
    Litmus("fewer bytes than come", boxed(1008), "has -16 bytes that were expected and never came", schedules=EARLY),
    Litmus(
        "waiting for more bytes",
        boxed(1040, ("mbarrier_wait", BARRIER, 0)),
        r"deadlock(?s:.*)0 phases have ended, 0 of 1 arrivals and 16 bytes are missing",
    ),
    Litmus(
        "a box over what was stored",
        one(STORED, *boxed(1024)[0, 0, 0]),
        r"through the async proxy to what thread 0 .* wrote \(store_shared at .*\), and a fence_proxy_async is missing",
    ),
    Litmus(
        "a box of what was stored", one(("store_global", 0, 1), *boxed(1024)[0, 0, 0]), "a fence_proxy_async is missing"
    ),
    Litmus(
        "the lesser fence is for shared memory",
        one(("store_global", 0, 1), ("fence_proxy_async_shared",), *boxed(1024)[0, 0, 0]),
        "a fence_proxy_async is missing: .*; global memory",
    ),
    # clusters
    of_cluster("no such block", in_cluster([("store_shared_cluster", 0, 2, 7)], []), "no block 2 in a cluster of 2"),
    of_cluster(
        "has it started?",
        in_cluster([("store_shared_cluster", 0, 1, 7)], [], start=[]),
        "nothing says that block 1 of the cluster has started; it takes a cluster barrier|has left the kernel",
    ),
    of_cluster(
        "has it started, in order",
        in_cluster([("store_shared_cluster", 0, 1, 7)], [], start=[]),
        "nothing says that block 1 of the cluster has started; it takes a cluster barrier",
        schedules=EARLY,
    ),
    of_cluster(
        "it has left",
        in_cluster([*[("load_acquire", 0)] * 99, ("store_shared_cluster", 0, 1, 7)], []),
        "block 1 of the cluster has left the kernel",
        schedules=EARLY,
    ),
    of_cluster(
        "will it stay?",
        in_cluster([("store_shared_cluster", 0, 1, 7)], [*[("load_acquire", 0)] * 99]),
        r"block \(1,0,0\) leaves the kernel, and nothing orders this after thread 0 of block \(0,0,0\) .* reaches into "
        r"its shared memory \(store_shared_cluster at",
        schedules=EARLY,
    ),
    of_cluster(
        "a mask of no block",
        in_cluster([("tma_load_multicast", 0, BARRIER, 0)], []),
        "the mask 0x0 does not fit a cluster of 2",
    ),
    of_cluster(
        "a mask of another block", in_cluster([("tma_load_multicast", 0, BARRIER, 5)], []), "the mask 0x5 does not fit"
    ),
    of_cluster(
        "arriving twice",
        {(0, 0): [("cluster_arrive",)] * 2, (1, 0): []},
        "comes to the cluster's barrier again without a wait",
    ),
    of_cluster(
        "not having come",
        {(0, 0): [("cluster_wait",)], (1, 0): []},
        "waits for the cluster's barrier without having come",
    ),
    of_cluster(
        "a remote arrival without the fence",
        in_cluster(
            [("mbarrier_arrive_cluster", BARRIER, 1)],
            [("mbarrier_wait", BARRIER, 0)],
            start=[("mbarrier_init", BARRIER, 1), ("cluster_sync",)],
        )
        | {(b, 0, REST): [("nothing",), ("cluster_sync",)] for b in (0, 1)},
        "no fence_mbarrier_init makes",
    ),
    of_cluster(
        "relaxed arrivals tell nothing",
        in_cluster(
            [("store_shared_cluster", 0, 1, 7), ("mbarrier_arrive_relaxed", BARRIER, 1)],
            [("mbarrier_wait_cluster", BARRIER, 0), ("load_shared", 0)],
            start=[("mbarrier_init", BARRIER, 1), ("fence_mbarrier_init",), ("cluster_sync",)],
        )
        | {(b, 0, REST): [("nothing",), ("nothing",), ("cluster_sync",)] for b in (0, 1)},
        "reads what .* nothing orders",
    ),
    of_cluster(
        "waits of the block's scope learn nothing",
        in_cluster(
            [("store_shared_cluster", 0, 1, 7), ("mbarrier_arrive_cluster", BARRIER, 1)],
            [("mbarrier_wait", BARRIER, 0), ("load_shared", 0)],
            start=[("mbarrier_init", BARRIER, 1), ("fence_mbarrier_init",), ("cluster_sync",)],
        )
        | {(b, 0, REST): [("nothing",), ("nothing",), ("cluster_sync",)] for b in (0, 1)},
        "reads what .* nothing orders",
    ),
    # registers
    of_warpgroup(
        "registers that are there", {(0, 0): [("registers_acquire 72",)]}, "has 248 registers per thread already"
    ),
    Litmus(
        "released twice",
        {(0, 0): [("registers_release 24",), ("registers_release 40",)]},
        "has 24 registers per thread already",
    ),
    # warpgroups
    Litmus("no warpgroup", {(0, 0): [("wgmma_fence",)]}, "the warp belongs to no whole warpgroup"),
    of_warpgroup(
        "unknown bits",
        with_tiles(("wgmma of a changed descriptor", 14)),
        "the descriptor of a has bits outside of its fields",
    ),
    of_warpgroup("no swizzle", with_tiles(("wgmma of a changed descriptor", 62)), "must say swizzle mode 1"),
    of_warpgroup("a base offset", with_tiles(("wgmma of a changed descriptor", 49)), "has a base offset"),
    of_warpgroup("an odd stride", with_tiles(("wgmma of a changed descriptor", 32)), "a multiple of 1024 bytes apart"),
    of_warpgroup(
        "other descriptors of a lane",
        with_tiles(*PRODUCT) | {(0, 3, 5): with_tiles(("wgmma_fence",), ("wgmma", 32, 8192, 0))[0, 3, 5]},
        "lanes call it with different descriptors",
    ),
    of_warpgroup(
        "other descriptors of a warp",
        with_tiles(*PRODUCT, last_warp=[("wgmma_fence",), ("wgmma", 32, 8192, 0)]),
        "the warps of the warpgroup call it with different descriptors",
    ),
    of_warpgroup(
        "warps go different ways",
        with_tiles(*PRODUCT, last_warp=[("wgmma_fence",), ("wgmma elsewhere", 0, 8192, 0)]),
        "the warps of the warpgroup have gone different ways: others are in wgmma at",
    ),
    of_warpgroup("no fence", with_tiles(("wgmma", 0, 8192, 0)), "no wgmma_fence comes between"),
    of_warpgroup(
        "no fence after waiting",
        with_tiles(*PRODUCT, ("wgmma_wait 0",), ("wgmma", 0, 8192, 0)),
        "no wgmma_fence comes between",
    ),
    of_warpgroup(
        "a warp has waited",
        with_tiles(
            *PRODUCT,
            ("nothing",),
            ("wgmma_fence",),
            ("wgmma", 0, 8192, 0),
            last_warp=[*PRODUCT, ("wgmma_wait 0",), ("wgmma_fence",), ("wgmma", 0, 8192, 0)],
        ),
        "the accumulator is still under way in some warps",
    ),
    of_warpgroup(
        "a written accumulator",
        with_tiles(*PRODUCT, ("write accumulator",), ("wgmma_wait 0",)),
        "an accumulator was written while products into it were under way",
    ),
    of_warpgroup("products never awaited", with_tiles(*PRODUCT), "leaves the kernel with products .* never waited for"),
    of_warpgroup(
        "products never committed", with_tiles(*PRODUCT[:2], ("wgmma_wait 0",)), "with products .* never waited for"
    ),
    of_warpgroup("an operand outside", with_tiles(("wgmma_fence",), ("wgmma", 0, 16384, 0)), OUTSIDE),
    of_warpgroup(
        "an operand is written over",
        with_tiles(*PRODUCT, *BY_ALL, STORED, ("wgmma_wait 0",)),
        r"writes over what the products of warpgroup 0 of block \(0,0,0\) reads \(wgmma at|wrote",
    ),
    of_warpgroup(
        "an operand without the fence",
        with_tiles(*[("store_shared", 0, 0)], *PRODUCT)
        | {
            (0, w, lane): with_tiles(("nothing",), *PRODUCT)[0, w, lane]
            for w in range(4)
            for lane in ALL
            if (w, lane) != (0, 0)
        },
        "a fence_proxy_async is missing|nothing orders",
    ),
    # deadlocks
    Litmus(
        "a flag that never comes",
        one(("wait_at_least", 0, 3)),
        r"deadlock: everyone who is left waits\n  wait_at_least at .*: for 3; the flag is 0\n    block \(0,0,0\) "
        r"warp 0 lane 0$",
    ),
    Litmus(
        "waiting for a block that is not resident",
        {(block, 0, 0): [("wait_at_least", 0, 1) if block < 8 else ("add_release", 0, 1)] for block in range(9)},
        r"wait_at_least at .*: for 1; the flag is 0\n    block \(0,0,0\) warp 0 lane 0, .*block \(7,0,0\) warp 0",
    ),
    Litmus(
        "a warp's lane is stuck",
        {(0, 0, 0): [("wait_at_least", 0, 1)], (0, 0, REST): [("nothing",), ("sync_warp",)]},
        r"sync_warp at .*: for the other lanes of the warp\n    block \(0,0,0\) warp 0 lanes 1-31",
    ),
    Litmus(
        "a warp is stuck",
        {(0, 0): [*BY_ALL], (0, 1, 0): [("wait_at_least", 0, 1)]},
        r"sync_threads at .*: barrier 0 has 32 of 64 threads\n    block \(0,0,0\) warp 0",
    ),
    of_warpgroup(
        "three quarters of a warpgroup",
        with_tiles(*PRODUCT, last_warp=[]),
        "wgmma at .*: for the other warps of the warpgroup",
    ),
    of_cluster(
        "a block is stuck",
        {(0, 0): [("cluster_sync",)], (1, 0, 0): [("wait_at_least", 0, 1)]},
        "cluster_sync at .*: for the other warps of the cluster",
    ),
    Litmus(
        "no registers", {(0, 0): [("registers_acquire 72",)]}, "registers_acquire at .*: 0 registers are free", 1024
    ),
)


@by_name(*RIGHT)
def test_right_programs_pass(emulator: Any, case: Litmus) -> None:
    check(emulator, case)


@by_name(*WRONG)
def test_wrong_programs_are_refused(emulator: Any, case: Litmus) -> None:
    check(emulator, case)


def test_reads_by_lanes_of_a_warp_share_a_mark(emulator: Any) -> None:
    """So a lane that writes without a barrier what all have read is only noticed if it is not the last one."""
    program: dict[Any, Steps] = {(0, 0): [("load_global", 0)], (0, 0, 5): [("load_global", 0), ("store_global", 0, 1)]}
    check(emulator, Litmus("any", program, "nothing orders the two"))
    program = {(0, 0): [("load_global", 0)], (0, 0, 31): [("load_global", 0), ("store_global", 0, 1)]}
    check(emulator, Litmus("last in order", program, schedules=EARLY))
    check(emulator, Litmus("last otherwise", program, "nothing orders the two", schedules=(("reverse", 0, "early"),)))


def test_accumulators_cannot_be_read_early(emulator: Any) -> None:
    steps = (*PRODUCT, ("read accumulator",), ("wgmma_wait 0",), ("read accumulator",))
    got = Litmus("early", with_tiles(*steps), threads=128).run(emulator)
    early, late = got[0, :, -3].view(np.float32), got[0, :, -1].view(np.float32)
    assert np.isnan(early).all() and not late.any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"blocks": 0}, r"a grid of \(0,1,1\)"),
        ({"threads": 0}, "blocks of 0 threads"),
        ({"threads": 1025}, "blocks of 1025 threads"),
        ({"shared_bytes": (227 << 10) + 16}, "232464 bytes of shared memory; the device has 232448 for a block"),
        ({"blocks": 4, "cluster": 3}, r"clusters of 3 \(at most 8\) in a grid of \(4,1,1\)"),
        ({"blocks": 16, "cluster": 16}, "clusters of 16"),
        ({"blocks": 100, "threads": 1024}, "holds more threads at once than the model can number"),
    ],
    ids=str,
)
def test_invalid_launches(emulator: Any, shape: dict[str, int], message: str) -> None:
    emulator.device(multiprocessors=100)
    with pytest.raises(emulator.EmulationError, match=f"^toys::tickets: invalid launch: .*{message}"):
        emulator.toy("tickets", [], **shape)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 8, 1, 1, 64, 8, 1, 1], r"size 0 must be from 1 to 2\^32; got 0"),
        ([64, 8, 1, 1, 64, 257, 1, 1], "box 1 must be from 1 to 256; got 257"),
        ([64, 8, 1, 1, 64, 8, 1, 0], "box 3 must be from 1 to 256; got 0"),
        ([60, 8, 1, 1, 64, 8, 1, 1], r"stride 1 must be a multiple of 16 below 2\^40; got 120"),
        ([64, 8, 1, 1, 32, 8, 1, 1], "a row of the box must have 128 bytes; got 64"),
    ],
    ids=str,
)
def test_tensor_maps(emulator: Any, numbers: list[int], message: str) -> None:
    x, got = np.zeros((8, 64), np.uint16), np.zeros((8, 64), np.uint16)
    with pytest.raises(emulator.EmulationError, match=f"make_tensor_map: {message}"):
        emulator.toy("box", [x, got], numbers)
    with pytest.raises(emulator.EmulationError, match="the base must be on a boundary of 16 bytes"):
        emulator.toy("box", [x.ravel()[1:], got], numbers)


def test_device_functions_need_a_kernel(emulator: Any) -> None:
    with pytest.raises(emulator.EmulationError, match="a device function was called outside of a kernel"):
        emulator.toy("outside of a kernel", [])
