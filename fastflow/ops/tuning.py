"""Launching Triton kernels with the block sizes that the tables in `tuned/` hold for this GPU.

A table is a JSON file: {kernel: {kind: [{"sizes": {...}, "config": {...}}, ...]}}, where kernel is the jitted
function's name without "_kernel", kind is "half", "float32" or "tf32" (float32 products in tf32; without such entries
those of "float32" hold), `sizes` are the sizes that the entry is for, and `config` is block sizes, `num_warps` and
`num_stages`. An entry may leave out sizes that it does not depend on.

Which tables hold for a device: its own by name (`nvidia-h200.json`) together with its compute capability's
(`sm_90.json`); for a kernel that these lack, that of the nearest lower capability with no more shared memory. For AMD
it is `gfx942.json` and the like, then `gfx.json`; for the CPU `interpreter.json`.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

log = logging.getLogger("fastflow")

TABLES = Path(__file__).parent / "tuned"

VARYING = ("B", "T")
"""Sizes that change from call to call: rounded up to a power of two, and a quarter as important as the others."""

COMPILER_OPTIONS = {"enable_fp_fusion": True}
"""What every kernel is compiled with: fused multiply-adds, which Triton 3.10 no longer makes by default."""

SHARED_MEMORY = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_103": 232448,
    "sm_110": 232448,
    "sm_120": 101376,
    "sm_121": 101376,
}
"""Bytes that one block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

_SHARED_MEMORY_GFX = 65536


class Target(NamedTuple):
    """What the choice of a table depends on."""

    arch: str
    """"sm_90", "gfx942" or "interpreter"."""
    shared_memory: int
    """Bytes that one block may have."""
    model: str = ""
    """The device's name as a file name, "nvidia-h200"."""


class Workspace:
    """An argument of a kernel whose size depends on the configuration.

    Args:
        make: called with the configuration, before the launch; returns the tensor.
    """

    def __init__(self, make: Callable[[dict[str, int]], Tensor]) -> None:
        self.make = make


def precision(dtype: torch.dtype) -> str:
    """Return how a dot of this dtype multiplies: float32 in IEEE arithmetic unless `torch.backends` allows tf32.

    The older flag `allow_tf32` and `torch.set_float32_matmul_precision` set `fp32_precision` as well; reading them
    raises where a program has used both.
    """
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def aligned_channels_last(x: Tensor) -> Tensor:
    """Return x [B, C, T] as [B, T, C] with dense rows of channels: a view where they are also aligned to 16 bytes."""
    y = x.transpose(1, 2)
    size = x.element_size()
    dense = y.stride(2) == 1 and y.stride(1) * size % 16 == 0 and y.stride(0) * size % 16 == 0
    return y if dense and y.data_ptr() % 16 == 0 else y.contiguous()


# Which table


@functools.cache
def table(name: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return contents


@functools.cache
def table_names() -> frozenset[str]:
    return frozenset(path.stem for path in TABLES.glob("*.json"))


def capability(arch: str) -> int | None:
    """Return 90 for "sm_90", None for what is not NVIDIA's."""
    return int(arch[3:]) if re.fullmatch(r"sm_\d+", arch) else None


@functools.cache
def preference(target: Target) -> tuple[tuple[str, ...], ...]:
    """Return groups of tables, best first. Tables of one group are read as one; later groups are for kernels it lacks.

    The first group holds the tables that were made for this very device or architecture, and may be empty.
    """
    names = table_names()
    own = tuple(name for name in (target.model, target.arch) if name in names)
    if target.arch == "interpreter":
        return (own,)
    wanted = capability(target.arch)
    if wanted is None:
        return (own, ("gfx",) if "gfx" in names else ())
    fitting = [
        number
        for number in map(capability, sorted(names - {target.arch}))
        if number is not None and SHARED_MEMORY.get(f"sm_{number}", 0) <= target.shared_memory
    ]
    lower = sorted((number for number in fitting if number < wanted), reverse=True)
    higher = sorted(number for number in fitting if number > wanted)
    return (own, *((f"sm_{number}",) for number in (*lower, *higher)))


@functools.cache
def _device_target(device: torch.device) -> Target:
    if device.type == "cpu":
        return Target("interpreter", 1 << 30)
    properties = torch.cuda.get_device_properties(device)
    model = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    if torch.version.hip is not None:
        return Target(properties.gcnArchName.split(":")[0], _SHARED_MEMORY_GFX, model)
    arch = f"sm_{properties.major}{properties.minor}"
    shared = getattr(properties, "shared_memory_per_block_optin", SHARED_MEMORY.get(arch, 101376))
    return Target(arch, int(shared), model)


_pretended: Target | None = None


@contextmanager
def pretend(target: Target) -> Iterator[None]:
    """Choose as for another device inside the `with` block: for compiling where there is none."""
    global _pretended
    before, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = before


def target_of(device: torch.device) -> Target:
    return _pretended if _pretended is not None else _device_target(device)


# Which entry


def bucketed(sizes: dict[str, int]) -> dict[str, int]:
    """Return the sizes with those that vary from call to call rounded up to a power of two."""
    return {k: 1 << (max(v, 1) - 1).bit_length() if k in VARYING else v for k, v in sizes.items()}


def kind_of(dtype: torch.dtype, precision: str | None) -> str:
    """Return the kind of entry for tensors of this dtype and dots of this precision."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if precision == "tf32" else "float32"


def _entries(kernel: str, kind: str, group: tuple[str, ...]) -> list[dict[str, Any]]:
    for k in (kind, "float32") if kind == "tf32" else (kind,):
        entries = [entry for name in group for entry in table(name).get(kernel, {}).get(k, ())]
        if entries:
            return entries
    return []


def _distance(sizes: dict[str, int], entry: dict[str, int]) -> float:
    return sum(
        abs(math.log2((1 + sizes[name]) / (1 + size))) * (0.25 if name in VARYING else 1.0)
        for name, size in bucketed(entry).items()
    )


class Choice(NamedTuple):
    """An entry of a table, and whether it was made for these very sizes and this architecture."""

    config: dict[str, int]
    sizes: dict[str, int]
    tables: tuple[str, ...]
    exact: bool


def choose(kernel: str, kind: str, sizes: dict[str, int], target: Target) -> Choice:
    """Return the entry whose sizes are nearest, in the best tables that know the kernel.

    Raises:
        LookupError: no table has an entry for this kernel.
    """
    sizes = bucketed(sizes)
    groups = preference(target)
    for group in groups:
        entries = _entries(kernel, kind, group)
        if entries:
            # of equally near ones, that which says more about its sizes
            entry = min(entries, key=lambda e: (_distance(sizes, e["sizes"]), -len(e["sizes"])))
            exact = group is groups[0] and _distance(sizes, entry["sizes"]) == 0
            return Choice(entry["config"], entry["sizes"], group, exact)
    raise LookupError(f"no table in {TABLES} that fits {target.arch} has an entry for kernel '{kernel}', kind '{kind}'")


_chosen: dict[tuple[Any, ...], dict[str, int]] = {}  # what launches have settled on, for the life of the process
_seen: dict[tuple[Any, ...], dict[str, int]] = {}  # the same by the sizes as they come: found without rounding them
_SEEN = 4096  # lengths differ without end
_logged: set[tuple[Any, ...]] = set()
_searching = threading.Lock()


def _key(kernel: str, device: torch.device, kind: str, sizes: dict[str, int]) -> tuple[Any, ...]:
    return (kernel, device, kind, *bucketed(sizes).values())


def configuration(
    kernel: str, device: torch.device, dtype: torch.dtype, sizes: dict[str, int], precision: str | None = None
) -> dict[str, int]:
    """Return the block sizes, `num_warps` and `num_stages` that a launch with these sizes uses.

    A workspace whose size depends on them is better given to `launch` as a `Workspace`: a search for a better
    configuration changes them during the launch.
    """
    kind = kind_of(dtype, precision)
    if _pretended is None and (config := _chosen.get(_key(kernel, device, kind, sizes))) is not None:
        return config
    target = target_of(device)
    choice = choose(kernel, kind, sizes, target)
    if not choice.exact and target.arch != "interpreter" and _pretended is None:
        _log_once(kernel, kind, sizes, choice, target)
    return choice.config


def _log_once(kernel: str, kind: str, sizes: dict[str, int], choice: Choice, target: Target) -> None:
    relevant = {name: size for name, size in bucketed(sizes).items() if name in choice.sizes}
    key = (target, kernel, kind, *relevant.values())
    if key not in _logged:
        _logged.add(key)
        log.info(
            "no tuned entry for kernel '%s' (%s) with %s on %s: using that of %s for %s; FASTFLOW_AUTOTUNE=1 searches "
            "for a better one",
            kernel,
            kind,
            _spelled(relevant),
            target.model or target.arch,
            ", ".join(choice.tables),
            _spelled(choice.sizes),
        )


def _spelled(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "any sizes"


# Launching

Grid = Callable[[dict[str, int]], tuple[int, ...]]


def launch(kernel: Any, grid: Grid, *args: Any, sizes: dict[str, int], **options: Any) -> None:
    """Run a kernel on the device and the current stream of its first tensor.

    With FASTFLOW_AUTOTUNE=1 the first launch for given sizes times several configurations, keeps the fastest for the
    life of the process and prints it as an entry for a table. Nothing else ever searches.

    Args:
        kernel: the jitted function; its name without "_kernel" is its name in the tables.
        grid: makes the grid from a configuration.
        args: the kernel's arguments in order; the first is a tensor. A `Workspace` is made for the configuration.
        sizes: what the choice of a configuration depends on. "B" and "T" mean sizes that vary from call to call.
        options: the kernel's other arguments by name.
    """
    x: Tensor = args[0]
    device = x.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, grid, *args, sizes=sizes, **options)
        return
    call = (kernel.__name__, device, x.dtype, options.get("PRECISION"), *sizes.values())
    config = _seen.get(call)
    if config is not None:
        # a mask or another option may need more than the launch that this was found for
        _seen[call] = _run_where_it_fits(kernel, grid, args, options, config)
        return
    name = kernel.__name__.removesuffix("_kernel")
    key = _key(name, device, kind_of(x.dtype, options.get("PRECISION")), sizes)
    config = _chosen.get(key)
    if config is None:
        config = _first_launch(kernel, grid, args, options, sizes, key)
        if config is None:
            return
        _chosen[key] = config
    else:
        config = _run_where_it_fits(kernel, grid, args, options, config)
    if len(_seen) >= _SEEN:
        _seen.clear()
    _seen[call] = config


def _first_launch(
    kernel: Any,
    grid: Grid,
    args: tuple[Any, ...],
    options: dict[str, Any],
    sizes: dict[str, int],
    key: tuple[Any, ...],
) -> dict[str, int] | None:
    """Launch with the table's configuration, or search if that is asked for; None where a later launch shall search."""
    x: Tensor = args[0]
    device, name = x.device, kernel.__name__.removesuffix("_kernel")
    config = configuration(name, device, x.dtype, sizes, options.get("PRECISION"))
    if os.environ.get("FASTFLOW_AUTOTUNE", "0") == "1" and (device.type == "cuda" or timer is not _median_ms):
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            _run(kernel, grid, args, options, config)
            return None
        with _searching:  # another thread may have found it meanwhile
            config = _chosen.get(key) or _search(kernel, grid, args, options, sizes, config)
            _chosen[key] = config
        _run(kernel, grid, args, options, config)
        return config
    return _run_where_it_fits(kernel, grid, args, options, config)


def _made(args: tuple[Any, ...], config: dict[str, int]) -> tuple[Any, ...]:
    """Return the arguments with each workspace in its place."""
    for a in args:
        if type(a) is Workspace:
            return tuple(a.make(config) if type(a) is Workspace else a for a in args)
    return args


def _run(kernel: Any, grid: Grid, args: tuple[Any, ...], options: dict[str, Any], config: dict[str, int]) -> None:
    kernel[grid(config)](*_made(args, config), **options, **config, **COMPILER_OPTIONS)


def _blocks(config: dict[str, int]) -> list[str]:
    """Return which of a configuration's entries are block sizes, the largest first."""
    return sorted((name for name in config if name.startswith("BLOCK")), key=lambda name: -config[name])


def _smaller(config: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield configurations that need less and less shared memory: fewer stages, then smaller blocks."""
    for stages in range(config.get("num_stages", 1) - 1, 0, -1):
        config = {**config, "num_stages": stages}
        yield config
    while (largest := next(iter(_blocks(config)), None)) is not None and config[largest] > 16:
        config = {**config, largest: config[largest] // 2}
        yield config


def _run_where_it_fits(
    kernel: Any, grid: Grid, args: tuple[Any, ...], options: dict[str, Any], config: dict[str, int]
) -> dict[str, int]:
    """Launch, with smaller blocks than the table's where sizes that it does not know need too much shared memory."""
    try:
        _run(kernel, grid, args, options, config)
        return config
    except OutOfResources as error:
        refused: Exception = error
    for smaller in _smaller(config):
        try:
            _run(kernel, grid, args, options, smaller)
        except OutOfResources:
            continue
        log.warning("%s with %s: %s; it runs with %s", kernel.__name__, config, refused, smaller)
        return smaller
    raise refused


# Searching


def _median_ms(run: Callable[[], None]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))


timer: Callable[[Callable[[], None]], float] = _median_ms
"""Times a launch, in milliseconds; tests put their own here."""


class _Kept:
    """Copies of everything that tensors among a kernel's arguments hold: some kernels accumulate in place."""

    def __init__(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        storages: dict[int, torch.UntypedStorage] = {}
        stack = [*args, *options.values()]
        while stack:
            value = stack.pop()
            if isinstance(value, Tensor):
                storage = value.untyped_storage()  # of the whole: views overlap
                storages[storage.data_ptr()] = storage
            elif isinstance(value, list | tuple):
                stack += value
        self.kept = [(s, s.clone()) for s in storages.values()]  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        for storage, copy in self.kept:
            storage.copy_(copy)


def neighbours(config: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield configurations one step away: a block doubled or halved, other warps, other stages."""
    for name in _blocks(config):
        for size in (config[name] // 2, config[name] * 2):
            if 16 <= size <= 8192:
                yield {**config, name: size}
    for name, values in (("num_warps", (4, 8)), ("num_stages", (2, 3, 4, 5))):
        for value in values:
            if config.get(name) != value:
                yield {**config, name: value}


def known(kernel: str, kind: str) -> list[dict[str, int]]:
    """Return the configurations that any table has for a kernel."""
    configs: list[dict[str, int]] = []
    for name in sorted(table_names() - {"interpreter"}):
        configs += [entry["config"] for entry in _entries(kernel, kind, (name,)) if entry["config"] not in configs]
    return configs


def _search(
    kernel: Any,
    grid: Grid,
    args: tuple[Any, ...],
    options: dict[str, Any],
    sizes: dict[str, int],
    start: dict[str, int],
) -> dict[str, int]:
    """Return the fastest of the configurations that compile: those of all tables, then what is near the best."""
    x: Tensor = args[0]
    name, kind = kernel.__name__.removesuffix("_kernel"), kind_of(x.dtype, options.get("PRECISION"))
    kept = _Kept(args, options)
    times: dict[tuple[tuple[str, int], ...], float] = {}
    refusals: list[Exception] = []

    def time(config: dict[str, int]) -> float:
        identity = tuple(sorted(config.items()))
        if identity not in times:
            try:
                made = _made(args, config)
                shape = grid(config)
                with redirect_stdout(io.StringIO()):  # Triton prints the whole assembly of what ptxas refuses
                    times[identity] = timer(lambda: kernel[shape](*made, **options, **config, **COMPILER_OPTIONS))
            except Exception as error:  # does not compile, or asks for more than the device has
                log.debug("%s with %s: %s", name, config, error)
                refusals.append(error)
                times[identity] = math.inf
            finally:
                kept.restore()
        return times[identity]

    best = min([start, *known(name, kind)], key=time)
    while (nearby := min(neighbours(best), key=time, default=best)) != best and time(nearby) < 0.99 * time(best):
        best = nearby
    if time(best) == math.inf:
        raise refusals[0]
    target = target_of(x.device)
    entry = {"sizes": bucketed(sizes), "config": best}
    path = TABLES / f"{target.model or target.arch}.json"
    print(
        f"fastflow: the best of {len(times)} configurations takes {time(best):.4f} ms, the table's own "
        f'{time(start):.4f} ms. For "{name}", "{kind}" in {path}:\n{json.dumps(entry)}',
        file=sys.stderr,
        flush=True,
    )
    return best
