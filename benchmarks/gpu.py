"""Check and time the operations and WaveGlow on a GPU.

    python -m benchmarks.gpu                                # everything: hours
    python -m benchmarks.gpu --minutes 5                    # what comes first: WaveGlow's synthesis, its gated stack
    python -m benchmarks.gpu --part infer --seconds 10 --batch 1
    python -m benchmarks.gpu --device cpu --tiny            # the same code at toy sizes, to see that it runs

Parts: "device" is what the GPU's own libraries reach; "ops" is each operation at its published sizes beside plain
PyTorch; "blocks" is a VITS and a Glow-TTS stack; "infer" is WaveGlow-256 from mel to audio. Each case runs on every
backend that can, beside plain PyTorch, eager and compiled, the variants taking turns. It is checked first, against
float64 for float32 and against float32 for half precision, where twice the error of plain PyTorch in the same dtype is
allowed. A case that is out of bounds is stored with its error and without a time, one that raises is printed with its
error, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import functools
import gc
import importlib.metadata
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks import cases, roofline
from benchmarks.cases import CASES, Case, Maker
from benchmarks.published import PublishedWaveGlow, PublishedWN
from fastflow import ops, use_backend
from fastflow.models import GraphedInfer, WaveGlow
from fastflow.ops import checks, registry, tuning

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INPUTS = 4  # sets of inputs that take turns, so that no run finds the last one's in the cache
SIGMA = 0.6

Run = Callable[[int], Any]
"""One call on the input set of this number."""


@dataclass
class Row:
    """One variant of one case."""

    part: str
    case: str
    op: str
    dtype: str
    variant: str
    error: float | None = None  # rms of the error / rms of the reference, the worst output's
    bound: float | None = None
    refused: str = ""  # why there is no time
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    limit_ms: float | None = None
    flops: float = 0.0  # that the published formula takes
    samples: int = 0  # of audio
    about: dict[str, str] = field(default_factory=dict)

    def key(self) -> tuple[str, ...]:
        return self.part, self.case, self.op, self.dtype, self.variant


class Work(NamedTuple):
    """One case in one dtype."""

    rank: int  # the lowest goes first
    name: str
    run: Callable[[], None]


class Bench:
    """Runs cases on one device and stores rows."""

    def __init__(
        self, device: torch.device, backends: list[str], rounds: int, folder: Path, commit: str, variants: set[str]
    ):
        self.device, self.backends, self.rounds, self.folder = device, backends, rounds, folder
        self.variants = variants
        self.model = "cpu" if device.type == "cpu" else tuning.target_of(device).model
        names = {d.name.lower().replace(" ", "-"): d for d in roofline.DEVICES}
        self.limits = next((d for name, d in names.items() if self.model.endswith(f"-{name}")), None)
        self.about = about(device, commit)
        self.failed = False
        self.rows: dict[tuple[str, ...], Row] = {}

    def run(self, work: Work) -> None:
        """Run one case; where it raises, the others go on."""
        try:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            work.run()
        except Exception as error:
            print(f"{work.name} | FAILED: {type(error).__name__}: {error}", flush=True)
            self.failed = True

    # rows

    def store(self, row: Row) -> None:
        """Add a row to those of earlier runs on this machine; a newer one replaces an older."""
        row.about = self.about
        path = self.folder / self.model / f"{row.part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        if path.exists():
            for old in json.loads(path.read_text(encoding="utf-8")):
                rows[Row(**old).key()] = old
        rows[row.key()] = asdict(row)
        path.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
        self.rows[row.key()] = row
        said = (
            row.refused or ""
            if row.median_ms is None
            else (
                f"{row.median_ms:.4f} ms [{row.p20_ms:.4f}, {row.p80_ms:.4f}]"
                + (f", limit {row.limit_ms:.4f}" if row.limit_ms else "")
                + (f", {row.flops / row.median_ms / 1e9:.3g} TFLOP/s" if row.flops else "")
                + (f", {row.samples / row.median_ms:.0f} kHz" if row.samples else "")
            )
        )
        error = "" if row.error is None else f", error {row.error:.2e} of at most {row.bound or math.nan:.2e}"
        print(f"{row.op} | {row.case} | {row.dtype} | {row.variant} | {said}{error}", flush=True)

    # time

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, run: Run, first: int, count: int) -> float:
        """Return milliseconds per call of `count` calls in a row."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for i in range(count):
                run((first + i) % INPUTS)
            return (time.perf_counter() - start) * 1e3 / count
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        for i in range(count):
            run((first + i) % INPUTS)
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / count

    def measure(self, runs: dict[str, Run]) -> dict[str, list[float]]:
        """Time the variants, taking turns within a round; the order turns from round to round."""
        if not runs:  # all were refused
            return {}
        counts = {}
        for name, run in runs.items():
            for i in range(3):
                run(i % INPUTS)
            self.synchronize()
            counts[name] = max(1, min(100, math.ceil(1.0 / max(self.once(run, 0, 1), 1e-3))))  # 1 ms or more
        times: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for r in range(self.rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                times[name].append(self.once(runs[name], r, counts[name]))
        return times

    def graph(self, run: Callable[..., Any], inputs: list[tuple[Tensor, ...]]) -> Run:
        """Return a function that copies a set of inputs in and replays `run`.

        The first call, which is the checked one, captures: what cannot be captured is refused like any other error.
        """
        static: tuple[Tensor, ...] = ()
        graph: torch.cuda.CUDAGraph | None = None
        out: Any = None

        def capture() -> None:
            nonlocal static, graph, out
            static = tuple(t.clone() for t in inputs[0])
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            # The warm-up is on the capture's stream: libraries keep a workspace for each. The outer `with` leaves
            # that stream even where the capture fails; `torch.cuda.graph` does not.
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run(*static)
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured, stream=stream):
                    out = run(*static)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = captured

        def replay(i: int) -> Any:
            if graph is None:
                capture()
            for to, source in zip(static, inputs[i], strict=True):
                to.copy_(source)
            graph.replay()
            return out

        return replay

    def wants(self, variant: str) -> bool:
        return variant in self.variants and (variant != "graph" or self.device.type == "cuda")

    def report(
        self, row: Row, runs: dict[str, Run], expected: Any, plain: Any, limit_case: Case, dtype: torch.dtype
    ) -> None:
        """Check every variant against `expected`, then time those that are within bounds.

        `plain` is plain PyTorch's result in the same dtype: its error is the measure for half precision.
        """
        limit_ms = None
        if self.limits is not None:
            limit_ms = roofline.limit(limit_case, dtype, self.limits).microseconds / 1e3
        good: dict[str, Row] = {}
        for name, run in list(runs.items()):
            mine = Row(row.part, row.case, row.op, row.dtype, name, limit_ms=limit_ms, samples=row.samples)
            mine.flops = limit_case.flops
            try:
                worst(mine, run(0), expected, plain, dtype)
            except Exception as error:  # reported as a row
                mine.refused = f"{type(error).__name__}: {error}".splitlines()[0]
                del runs[name]
            if mine.refused:
                self.failed = True
                runs.pop(name, None)
                self.store(mine)
            else:
                good[name] = mine
        del expected, plain
        for name, times in self.measure(runs).items():
            mine = good[name]
            quantiles = statistics.quantiles(times, n=10, method="inclusive")
            mine.median_ms, mine.p20_ms, mine.p80_ms = statistics.median(times), quantiles[1], quantiles[7]
            mine.rounds = self.rounds
            self.store(mine)


def about(device: torch.device, commit: str) -> dict[str, str]:
    """What a row's figures depend on."""
    facts = {
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda or torch.version.hip)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            query = ["nvidia-smi", f"--id={device.index or 0}", "--format=csv,noheader"]
            query.append("--query-gpu=driver_version,clocks.max.sm,power.limit")
            facts["driver, clock, power"] = subprocess.check_output(query, text=True).strip()
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """Return what git says of this checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# Correctness


def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def converted(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, list | tuple):
        return type(values)(converted(v, dtype) for v in values)
    return values


def wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


HAVE_LOG_DET = ("affine_coupling", "invconv1x1", "actnorm", "flow_step")
"""The operations whose second output is a log-determinant."""
LOG_DET_TERM = 1e-5
"""What a float32 log-determinant may be off for every value that it is the sum over."""


def size(x: Tensor) -> float:
    """Return the rms, never zero."""
    return max(float(x.double().square().mean().sqrt()), 1e-30)


def relative(x: Tensor, reference: Tensor) -> float:
    """Return rms of the error / rms of the reference."""
    return float((x.double() - reference.double()).square().mean().sqrt()) / size(reference)


def worst(row: Row, got: Any, expected: Any, plain: Any, dtype: torch.dtype) -> None:
    """Set the row's error and bound to those of the output that is nearest to its bound, or say which is beyond it."""
    log_det = 1 if row.op in HAVE_LOG_DET else None
    triples = list(zip(tensors(got), tensors(expected), tensors(plain), strict=True))
    nearest = -1.0
    for i, (g, e, p) in enumerate(triples):
        if g.shape != e.shape:
            row.refused = f"output {i} has shape {list(g.shape)}, expected {list(e.shape)}"
            return
        if g.numel() == 0:
            continue
        error = relative(g, e)
        # half precision: twice plain PyTorch's error in that dtype, at least one rounding; float32: a fixed bound
        bound = 1e-4 if dtype == torch.float32 else max(2 * relative(p, e), torch.finfo(dtype).eps)
        if i == log_det and dtype == torch.float32:  # a sum over channels and steps, whose terms may cancel
            terms = triples[0][1].numel() / e.numel()
            bound = max(bound, LOG_DET_TERM * terms / size(e))
        if not error / bound <= nearest:
            row.error, row.bound, nearest = error, bound, error / bound
        if not error <= bound:  # NaN too
            row.refused = f"output {i} is out of bounds"
            return


# The parts


def no_tf32() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def bench_device(bench: Bench, dtype: torch.dtype, tiny: bool) -> None:
    """Time what everything else is held against: a large matrix product of PyTorch's, and a copy."""
    n = 64 if tiny else 8192
    name, spelled = f"{n} x {n} x {n}", str(dtype).removeprefix("torch.")
    m = Maker(dtype, bench.device)
    # on random values: with zeros the clock stays higher, and the rate is one that no model sees
    sets = [(m.randn(n, n), m.randn(n, n)) for _ in range(INPUTS)]
    product = sets[0][0] @ sets[0][1]
    case = Case(name, "matrix product", lambda m: (), 2.0 * n**3, 3.0 * n * n)
    row = Row("device", name, case.op, spelled, "")
    bench.report(row, {"PyTorch": lambda i: torch.mm(*sets[i])}, product, product, case, dtype)
    case = Case(name, "copy", lambda m: (), 0.0, 2.0 * n * n)
    row = Row("device", f"{n} x {n}", case.op, spelled, "")
    to = torch.empty_like(product)
    bench.report(row, {"PyTorch": lambda i: to.copy_(sets[i][0])}, sets[0][0], sets[0][0], case, dtype)


def laid_out(values: Any) -> Any:
    """Return what `fastflow.nn` hands to a gated stack: the channels of a step and of a tap beside each other."""
    if isinstance(values, Tensor):
        return values.transpose(1, 2).contiguous().transpose(1, 2) if values.dim() == 3 else values
    if isinstance(values, list | tuple):
        return type(values)(map(laid_out, values))
    return values


def bench_op(bench: Bench, case: Case, dtype: torch.dtype, samples: int = 0) -> None:
    """Time one operation: plain PyTorch, every backend, and all of them as replayed graphs."""
    reference = registry._implementations["reference"][case.op]
    row = Row("ops", case.name, case.op, str(dtype).removeprefix("torch."), "", samples=samples)
    inputs = [case.arguments(dtype, bench.device, seed) for seed in range(INPUTS)]
    calls: dict[str, tuple[Callable[..., Any], list[Any]]] = {"eager": (reference, inputs)}
    for backend in bench.backends:
        if registry._unsupported(backend, case.op, inputs[0][0]) is None:
            calls[backend] = registry._implementations[backend][case.op], inputs
    if len(calls) == 1:
        return
    if case.op.startswith("wn"):  # the kernels for GPUs otherwise turn their inputs first, in every call
        turned = laid_out(inputs)
        calls |= {f"{name} laid out": (calls[name][0], turned) for name in ("triton", "cuda") if name in calls}
    with checks.no_autocast(bench.device):
        expected = reference(*converted(inputs[0], wider(dtype)))
        plain = reference(*inputs[0])
        runs: dict[str, Run] = {}
        for name, (f, given) in calls.items():
            if bench.wants("eager" if name == "eager" else "ours"):
                runs[name] = lambda i, f=f, given=given: f(*given[i])
            if bench.wants("graph"):  # each replays the first inputs: what a launch costs is not in it
                runs[f"{name} graph"] = bench.graph(lambda f=f, given=given: f(*given[0]), [()] * INPUTS)
        bench.report(row, runs, expected, plain, case, dtype)


def on_backend(backend: str, run: Run) -> Run:
    """Return `run`, on a backend."""

    def on_it(i: int) -> Any:
        with use_backend(backend):
            return run(i)

    return on_it


def compiled(module: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    """Compile, and hand out copies: graphs of Inductor's own reuse their outputs."""
    function = torch.compile(module, mode=mode, dynamic=False)
    return lambda *args: function(*args).clone()


def bench_block(bench: Bench, block: cases.Block, steps: int, dtype: torch.dtype, batch: int = 1) -> None:
    """Time a gated stack with its masks and conditioning."""
    torch._dynamo.reset()
    m = Maker(dtype, bench.device)
    args = block.arguments(m, batch, steps)
    weights, dilations = args[1:5] + args[6:8], args[10]
    sets = []
    for _ in range(INPUTS):
        x = block.layer_arguments(m, batch, steps, 0)
        sets.append((x[0], x[5], x[9]))
    published = PublishedWN(*weights, dilations).to(bench.device)
    wide = PublishedWN(*converted(weights, wider(dtype)), dilations).to(bench.device)

    def ours(h: Tensor, cond: Tensor | None, mask: Tensor | None) -> Tensor:
        conv_weights, conv_biases, res_weights, res_biases, cond_weights, cond_biases = weights
        return ops.wn(
            h,
            conv_weights,
            conv_biases,
            res_weights,
            res_biases,
            cond,
            cond_weights,
            cond_biases,
            mask=mask,
            dilations=dilations,
        )

    runs: dict[str, Run] = {}
    if bench.wants("eager"):
        runs["eager"] = lambda i: published(*sets[i])
    for name, mode in (("compile", None), ("compile max-autotune", "max-autotune")):
        if bench.wants(name):
            function = compiled(published, mode)
            runs[name] = lambda i, function=function: function(*sets[i])
    present = [tuple(t for t in s if t is not None) for s in sets]
    places = [t is not None for t in sets[0]]

    def spread(*given: Tensor) -> Tensor:
        rest = iter(given)
        return ours(*(next(rest) if place else None for place in places))

    for backend in bench.backends:
        if bench.wants("ours"):
            runs[backend] = on_backend(backend, lambda i: ours(*sets[i]))
        if bench.wants("graph"):
            runs[f"{backend} graph"] = on_backend(backend, bench.graph(spread, present))
    with torch.no_grad():
        name = f"{block.model}, {steps} steps, batch {batch}"
        row = Row("blocks", name, "wn", str(dtype).removeprefix("torch."), "")
        columns = batch * steps
        elements = columns * (block.channels + block.S) + block.cond_elements(batch, steps)
        elements += sum(block.weights(i) for i in range(block.layers))
        flops = sum(block.layer_flops(batch, steps, i) for i in range(block.layers))
        limit_case = Case(name, "wn", lambda m: (), flops, elements)
        expected = wide(*converted(sets[0], wider(dtype)))
        bench.report(row, runs, expected, published(*sets[0]), limit_case, dtype)


def waveglow(tiny: bool) -> WaveGlow:
    """WaveGlow-256 with random weights; `end` is not zero, as it is before training."""
    torch.manual_seed(0)
    if tiny:
        model = WaveGlow(4, 3, 4, 2, 2, {"n_layers": 2, "n_channels": 8, "kernel_size": 3}, hop_length=8, win_length=16)
    else:
        model = WaveGlow(80, 12, 8, 4, 2, {"n_layers": 8, "n_channels": 256, "kernel_size": 3})
    with torch.no_grad():
        for net in model.WN:
            torch.nn.init.normal_(net.end.weight, std=0.1 / net.end.weight.shape[1] ** 0.5)
    return model.eval().remove_weightnorm()


def infer_case(model: WaveGlow, name: str, batch: int, frames: int) -> Case:
    """What synthesis costs at least: the published count of its products; weights, mel, noise and audio moved once."""
    steps = frames * model.hop_length // model.n_group
    flops = 2.0 * batch * frames * model.upsample.weight.numel()
    for net in model.WN:
        convs = [*net.in_layers, *net.res_skip_layers, net.cond_layer, net.start, net.end]
        flops += sum(2.0 * batch * steps * math.prod(conv.shape) for conv in convs)
    flops += sum(2.0 * batch * steps * convinv.channels**2 for convinv in model.convinv)
    elements = sum(p.numel() for p in model.parameters()) + batch * frames * (
        model.n_mel_channels + 2 * model.hop_length
    )
    return Case(name, "infer", lambda m: (), flops, elements)


def graphed_infer(model: WaveGlow, sets: list[tuple[Tensor, ...]]) -> Run:
    """Return a function that captures on its first call, which is the checked one, and replays from then on."""
    infer = functools.cache(lambda: GraphedInfer(model, sets[0][0].shape[0], sets[0][0].shape[2]))
    return lambda i: infer()(sets[i][0], SIGMA, z=sets[i][1])


def bench_infer(bench: Bench, frames: int, batch: int, dtype: torch.dtype, tiny: bool) -> None:
    """Time WaveGlow from mel and noise to audio."""
    torch._dynamo.reset()
    model = waveglow(tiny)
    name = f"{'toy WaveGlow' if tiny else 'WaveGlow-256'}, {frames} frames, batch {batch}"
    model = model.to(bench.device, dtype)
    published = PublishedWaveGlow(model).to(bench.device)
    # of the rounded weights, so that their rounding is in nobody's error
    published_wide = PublishedWaveGlow(copy.deepcopy(model).to(wider(dtype))).to(bench.device)
    m = Maker(dtype, bench.device)
    steps = frames * model.hop_length // model.n_group
    shapes = (batch, model.n_mel_channels, frames), (batch, model.n_group, steps)
    sets = [tuple(m.randn(*shape) for shape in shapes) for _ in range(INPUTS)]

    runs: dict[str, Run] = {}
    with torch.no_grad():
        if bench.wants("eager"):
            runs["eager"] = lambda i: published(*sets[i], SIGMA)
            if dtype == torch.bfloat16:  # the dtype that published figures are of
                half = PublishedWaveGlow(copy.deepcopy(model).half()).to(bench.device)
                halves = converted(sets, torch.float16)
                runs["eager float16"] = lambda i: half(*halves[i], SIGMA)
        for variant, mode in (("compile", None), ("compile max-autotune", "max-autotune")):
            if bench.wants(variant):
                function = compiled(published, mode)
                runs[variant] = lambda i, function=function: function(*sets[i], SIGMA)
                if mode is None and bench.wants("graph"):  # max-autotune makes its own
                    runs["compile graph"] = bench.graph(lambda *x, function=function: function(*x, SIGMA), sets)
        for backend in bench.backends:
            if bench.wants("ours"):
                runs[backend] = on_backend(backend, lambda i: model.infer(sets[i][0], SIGMA, z=sets[i][1]))
            if bench.wants("graph"):
                runs[f"{backend} graph"] = on_backend(backend, graphed_infer(model, sets))
        row = Row("infer", name, "infer", str(dtype).removeprefix("torch."), "")
        row.samples = batch * frames * model.hop_length
        expected = published_wide(*converted(sets[0], wider(dtype)), SIGMA)
        del published_wide
        bench.report(row, runs, expected, published(*sets[0], SIGMA), infer_case(model, name, batch, frames), dtype)


# "ours" is every backend by itself, under its own name; "graph" everything else as a CUDA graph too.
PARTS = ("device", "ops", "blocks", "infer")
VARIANTS = ("eager", "compile", "compile max-autotune", "ours", "graph")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", nargs="+", help="default on a GPU: those of cuda and triton that can run")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--op", nargs="+", help="of part ops, only these")
    parser.add_argument("--case", help="of part ops, only cases whose name contains this")
    parser.add_argument("--seconds", nargs="+", type=int, choices=(1, 10), default=[1, 10], help="of part infer")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="of part infer")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16", "float16", "float32"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=commit(), help="what the rows say was measured")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("no GPU is available; --device cpu --tiny shows that everything runs")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    no_tf32()
    backends = options.backend or backends_of(device)
    for backend in backends:
        with use_backend(backend):  # raises with the reason where it cannot run
            pass
    bench = Bench(device, backends, options.rounds, options.out, options.commit, set(options.variants))
    left_out = 0
    for work in sorted(_work(bench, options), key=lambda work: work.rank):
        if time.perf_counter() - start > 60 * options.minutes:
            left_out += 1
            continue
        bench.run(work)
    if left_out:
        print(f"{left_out} cases were left out: {options.minutes:g} minutes are over")
    print(f"{len(bench.rows)} rows in {options.out / bench.model}; {'FAILED' if bench.failed else 'all within bounds'}")
    return 1 if bench.failed else 0


def backends_of(device: torch.device) -> list[str]:
    """Return the backends to time by default; say why one cannot run."""
    if device.type != "cuda":
        return ["reference"]
    able = []
    for status in registry.status():
        if status.backend in ("triton", "cuda"):
            if status.can_run:
                able.append(status.backend)
            else:
                print(f"{status.backend} is left out: {status.reason}")
    return able


def _work(bench: Bench, options: argparse.Namespace) -> Iterator[Work]:
    """Yield each case in each dtype."""
    dtypes = [DTYPES[name] for name in options.dtype]
    later = 100  # after what the project is measured by: synthesis and the gated stack of WaveGlow-256, batch 1
    if "device" in options.part:
        yield Work(0, "device", functools.partial(bench_device, bench, torch.bfloat16, options.tiny))
    if "infer" in options.part:
        for seconds, batch, dtype in itertools.product(options.seconds, options.batch, dtypes):
            frames = seconds + 1 if options.tiny else cases.FRAMES[seconds]
            run = functools.partial(bench_infer, bench, frames, batch, dtype, options.tiny)
            half = {torch.bfloat16: 1, torch.float16: 5}.get(dtype, later)
            rank = half + (seconds == 1) if batch == 1 else later
            yield Work(rank, f"infer | {frames} frames, batch {batch} | {dtype}", run)
    if "ops" in options.part:
        for case, dtype in itertools.product(toy_cases() if options.tiny else CASES, dtypes):
            if (not options.op or case.op in options.op) and (not options.case or options.case in case.name):
                run = functools.partial(bench_op, bench, case, dtype)
                rank = later + (not case.main)
                if case.op in ("wn", "wn_layer") and dtype == torch.bfloat16:
                    rank = {"WaveGlow-256, 10 s, batch 1": 3, "WaveGlow-256, 1 s, batch 1": 4}.get(case.name, rank)
                yield Work(rank, f"{case.op} | {case.name} | {dtype}", run)
    if "blocks" in options.part:
        for block, dtype in itertools.product((cases.VITS, cases.GLOW_TTS), dtypes):
            steps = 40 if options.tiny else cases.steps_of(block.model, 10)
            toy = cases.Block(block.model, 8, 5, 2, (1,), 6 if block.cond_channels else 0, block.cond, mask=True)
            run = functools.partial(bench_block, bench, toy if options.tiny else block, steps, dtype)
            yield Work(later, f"wn | {block.model}, {steps} steps | {dtype}", run)


def toy_cases() -> list[Case]:
    """Every operation once, small."""
    block = cases.Block("toy", 8, 3, 2, (1, 2), 5, mask=True)
    made: list[Case] = []
    with mock.patch.object(cases, "steps_of", return_value=33):
        made += cases.block_cases(block, 1, 2, ops=cases.ALL_BLOCK_OPS, main=True)
        made += cases.gate_cases(block, 1, main=True)
        made += cases.small_cases("toy", 6, 1, form="exp", mask=True, invconv=True, actnorm=True, main=True)
        made += cases.flow_step_cases(block, 6, 2, 1, main=True)
    return [case for case in made if case.op in registry._implementations["reference"]]


if __name__ == "__main__":
    sys.exit(main())
