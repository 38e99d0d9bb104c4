"""Check and time the operations and WaveGlow on a GPU.

    python -m benchmarks.gpu                                # everything: hours
    python -m benchmarks.gpu --minutes 5                    # what comes first: WaveGlow's synthesis, its gated stack
    python -m benchmarks.gpu --part infer --seconds 10 --batch 1
    python -m benchmarks.gpu --device cpu --tiny            # the same code at toy sizes, to see that it runs

Parts: "device" is what the GPU's own libraries reach; "ops" is each operation at its published sizes beside plain
PyTorch; "blocks" is a VITS and a Glow-TTS stack; "infer" is WaveGlow-256 from mel to audio. Each case runs on every
backend that can, beside plain PyTorch, eager and compiled, and TensorRT where torch_tensorrt is installed, the variants
taking turns. It is checked first, against
float64 for float32 and against float32 for half precision, where twice the error of plain PyTorch in the same dtype is
allowed. A case that is out of bounds is stored with its error and without a time, one that raises is printed with its
error, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import importlib
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import roofline
from fastflow import ops, use_backend
from fastflow.bench import cases, models, rows
from fastflow.bench.cases import CASES, Case, Maker, toy_cases
from fastflow.bench.check import DTYPES, converted, name_of, no_tf32, wider
from fastflow.bench.models import SIGMA, on_backend
from fastflow.bench.published import PublishedWaveGlow, PublishedWN, hifi_gan
from fastflow.bench.rows import Row
from fastflow.bench.timing import Clock, Own, Run, judge, rates
from fastflow.models import GraphedInfer, WaveGlow
from fastflow.ops import registry

RESULTS = Path(__file__).parent / "results"
HIFI_GAN = "HiFi-GAN V1, eager float16"
TENSORRT = "tensorrt"  # where torch_tensorrt is installed
INPUTS = 4  # sets of inputs that take turns, so that no run finds the last one's in the cache


class Work(NamedTuple):
    """One case in one dtype."""

    rank: int  # the lowest goes first
    name: str
    run: Callable[[], None]


class Bench:
    """Runs cases on one device and stores rows."""

    def __init__(
        self,
        device: torch.device,
        backends: list[str],
        rounds: int,
        folder: Path,
        commit: str,
        variants: set[str],
        tiny: bool,
    ):
        self.device, self.backends, self.rounds, self.folder = device, backends, rounds, folder
        self.variants, self.tiny = variants, tiny
        self.machine, self.clock = rows.machine(device), Clock(device, INPUTS)
        names = {d.name.lower().replace(" ", "-"): d for d in roofline.DEVICES}
        self.limits = next((d for name, d in names.items() if self.machine.endswith(f"-{name}")), None)
        self.about = rows.about(device, commit)
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
        rows.store([row], self.folder / self.machine)
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
        self,
        row: Row,
        runs: Mapping[str, Run],
        expected: Any,
        plain: Any,
        case: Case,
        own: Mapping[str, Own] | None = None,
    ) -> None:
        """Check every variant, time those that are within bounds, and store the rows; see `judge`."""
        dtype = DTYPES[row.dtype]
        row = replace(row, flops=case.flops, bytes=case.bytes(dtype))
        if self.limits is not None:
            row.limit_ms = roofline.limit(case, dtype, self.limits).microseconds / 1e3
        held = rates(dtype, self.device, self.tiny)
        for mine, _ in judge(row, runs, expected, plain, self.clock, self.rounds, held, own):
            self.failed |= bool(mine.refused)
            self.store(mine)


# The parts


def bench_device(bench: Bench, dtype: torch.dtype, tiny: bool) -> None:
    """Time what everything else is held against: a large matrix product of PyTorch's, and a copy."""
    n = 64 if tiny else 8192
    name, spelled = f"{n} x {n} x {n}", name_of(dtype)
    m = Maker(dtype, bench.device)
    # on random values: with zeros the clock stays higher, and the rate is one that no model sees
    sets = [(m.randn(n, n), m.randn(n, n)) for _ in range(INPUTS)]
    product = sets[0][0] @ sets[0][1]
    case = Case(name, "matrix product", lambda m: (), 2.0 * n**3, 3.0 * n * n)
    row = Row("device", name, case.op, spelled, "")
    bench.report(row, {"PyTorch": lambda i: torch.mm(*sets[i])}, product, product, case)
    case = Case(name, "copy", lambda m: (), 0.0, 2.0 * n * n)
    row = Row("device", f"{n} x {n}", case.op, spelled, "")
    to = torch.empty_like(product)
    bench.report(row, {"PyTorch": lambda i: to.copy_(sets[i][0])}, sets[0][0], sets[0][0], case)


def bench_op(bench: Bench, case: Case, dtype: torch.dtype, samples: int = 0) -> None:
    """Time one operation: plain PyTorch, every backend, and all of them as replayed graphs."""
    row = Row("ops", case.name, case.op, name_of(dtype), "", samples=samples)
    inputs = [case.arguments(dtype, bench.device, seed) for seed in range(INPUTS)]
    functions = models.op_functions(case, bench.backends, inputs[0][0])
    if len(functions) == 1:
        return
    calls = {name: (f, inputs) for name, f in functions.items()}
    if case.op.startswith("wn"):  # the kernels for GPUs otherwise turn their inputs first, in every call
        turned = models.laid_out(inputs)
        calls |= {f"{name} laid out": (calls[name][0], turned) for name in ("triton", "cuda") if name in calls}
    runs: dict[str, Run] = {}
    for name, (f, given) in calls.items():
        if bench.wants("eager" if name == "eager" else "ours"):
            runs[name] = lambda i, f=f, given=given: f(*given[i])
        if bench.wants("graph"):  # each replays the first inputs: what a launch costs is not in it
            runs[f"{name} graph"] = bench.graph(lambda f=f, given=given: f(*given[0]), [()] * INPUTS)
    expected, plain = models.op_results(case, inputs[0], dtype, bench.device)
    bench.report(row, runs, expected, plain, case)


def tuned(run: Run) -> Run:
    """Return `run` with cuDNN trying its algorithms for each size first."""

    def run_tuned(i: int) -> Any:
        torch.backends.cudnn.benchmark = True
        try:
            return run(i)
        finally:
            torch.backends.cudnn.benchmark = False

    return run_tuned


COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    "compile max-autotune": {"mode": "max-autotune"},
    TENSORRT: {"backend": "torch_tensorrt"},
}
"""Variants that torch.compile makes, with its options."""


def compiled(module: Callable[..., Any], variant: str) -> Callable[..., Any]:
    """Compile at the first call, and hand out copies: graphs of Inductor's own reuse their outputs."""

    @functools.cache
    def function() -> Callable[..., Any]:
        if variant == TENSORRT:
            importlib.import_module("torch_tensorrt")  # which makes its backend known
        return torch.compile(module, dynamic=False, **COMPILED[variant])

    return lambda *args: function()(*args).clone()


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
    for name in COMPILED:
        if bench.wants(name):
            function = compiled(published, name)
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
        row = Row("blocks", name, "wn", name_of(dtype), "")
        limit_case = Case(name, "wn", lambda m: (), block.flops(batch, steps), block.elements(batch, steps))
        expected = wide(*converted(sets[0], wider(dtype)))
        bench.report(row, runs, expected, published(*sets[0]), limit_case)


def graphed_infer(model: WaveGlow, sets: list[tuple[Tensor, ...]]) -> Run:
    """Return a function that captures on its first call, which is the checked one, and replays from then on."""
    infer = functools.cache(lambda: GraphedInfer(model, sets[0][0].shape[0], sets[0][0].shape[2]))
    return lambda i: infer()(sets[i][0], SIGMA, z=sets[i][1])


def bench_infer(bench: Bench, frames: int, batch: int, dtype: torch.dtype, tiny: bool) -> None:
    """Time WaveGlow from mel and noise to audio, beside HiFi-GAN V1, which is no flow, from the same mel."""
    torch._dynamo.reset()
    work = models.synthesis(frames, batch, dtype, bench.device, INPUTS, tiny)
    sets = work.sets
    runs: dict[str, Run] = {}
    own: dict[str, Own] = {}
    with torch.no_grad():
        eager: dict[str, tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]] = {}
        eager["eager"] = lambda mel, z: work.published(mel, z, SIGMA), sets
        if dtype == torch.bfloat16:  # float16 is what published figures are of
            half = PublishedWaveGlow(copy.deepcopy(work.model).half()).to(bench.device)
            halves = converted(sets, torch.float16)
            gan = hifi_gan(work.model.n_mel_channels, tiny).to(bench.device).half()
            wide = copy.deepcopy(gan).float()(halves[0][0].float())
            eager["eager float16"] = lambda mel, z: half(mel, z, SIGMA), halves
            eager[HIFI_GAN] = lambda mel, z: gan(mel), halves
            for name in (HIFI_GAN, f"{HIFI_GAN} graph"):
                own[name] = Own(wide, gan(halves[0][0]), gan.flops(batch, frames))
        for name, (call, given) in eager.items():
            if bench.wants("eager"):
                runs[name] = lambda i, call=call, given=given: call(*given[i])
            if bench.wants("graph"):
                runs[f"{name} graph"] = bench.graph(call, given)
        if bench.wants("tuned"):
            runs["eager tuned"] = tuned(work.eager)
            last = copy.deepcopy(work.published)
            for parameter in last.parameters():
                parameter.data = models.laid_out(parameter.data)
            turned = models.laid_out(sets)
            runs["eager tuned, channels last"] = tuned(lambda i: last(*turned[i], SIGMA))
        for variant in COMPILED:
            if bench.wants(variant):
                function = compiled(work.published, variant)
                runs[variant] = lambda i, function=function: function(*sets[i], SIGMA)
                if variant == "compile" and bench.wants("graph"):  # max-autotune makes its own
                    runs["compile graph"] = bench.graph(lambda *x, function=function: function(*x, SIGMA), sets)
        work.model.compose_conditioning("off")
        composed = copy.deepcopy(work.model)
        composed.compose_conditioning("kept")
        for backend in bench.backends:
            nets = {backend: work.model}
            with use_backend(backend):
                if registry.kernels_take_phases(sets[0][0]):
                    nets[f"{backend} composed"] = composed
            for variant, net in nets.items():
                if bench.wants("ours"):
                    runs[variant] = on_backend(backend, lambda i, net=net: net.infer(sets[i][0], SIGMA, z=sets[i][1]))
                if bench.wants("graph"):
                    runs[f"{variant} graph"] = on_backend(backend, graphed_infer(net, sets))
        row = Row("infer", work.case.name, "infer", name_of(dtype), "", samples=work.samples)
        bench.report(row, runs, *work.results(), work.case, own)


# "ours" is every backend by itself, under its own name, and WaveGlow with composed conditioning too; "graph" everything
# else as a CUDA graph too; "tuned" is eager with cuDNN's autotuning, in both memory layouts.
PARTS = ("device", "ops", "blocks", "infer")
VARIANTS = ("eager", "tuned", *COMPILED, "ours", "graph")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", nargs="+", help="default on a GPU: those of cuda and triton that can run")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--op", nargs="+", help="of part ops, only these")
    parser.add_argument("--case", help="of part ops, only cases whose name contains this")
    parser.add_argument(
        "--seconds", nargs="+", type=float, choices=list(cases.FRAMES), default=[1, 10], help="of part infer"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="of part infer")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16", "float16", "float32"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=rows.commit(), help="what the rows say was measured")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch_tensorrt") is None:
        if TENSORRT in (options.variants or ()):
            parser.error(f"--variants {TENSORRT} needs the package torch_tensorrt")
        options.variants = options.variants or [name for name in VARIANTS if name != TENSORRT]
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
    bench = Bench(
        device, backends, options.rounds, options.out, options.commit, set(options.variants or VARIANTS), options.tiny
    )
    left_out = 0
    for work in sorted(_work(bench, options), key=lambda work: work.rank):
        if time.perf_counter() - start > 60 * options.minutes:
            left_out += 1
            continue
        bench.run(work)
    if left_out:
        print(f"{left_out} cases were left out: {options.minutes:g} minutes are over")
    print(
        f"{len(bench.rows)} rows in {options.out / bench.machine}; {'FAILED' if bench.failed else 'all within bounds'}"
    )
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
            frames = int(seconds) + 1 if options.tiny else cases.FRAMES[seconds]
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


if __name__ == "__main__":
    sys.exit(main())
