"""Check and time whole models and blocks on a CPU, beside what else runs them.

    python -m benchmarks.cpu                                # everything: an hour and more
    python -m benchmarks.cpu --case "WaveGlow-256, 80 frames" --dtype float32 --rounds 5
    python -m benchmarks.cpu --tiny                         # the same code at toy sizes, to see that it runs

Variants: the published arithmetic in PyTorch, eager and compiled; the same with allocations kept, for which glibc is
told never to hand memory back to the system; ONNX Runtime; OpenVINO; fastflow, as `auto` has it. Each is a process of
its own, since the allocator is a property of a process; they take turns, and one more among them multiplies matrices
for the rate that the others are held against. Each is checked before it is timed, as in `benchmarks.gpu`: what is out
of bounds gets no time, and while that is fastflow there are no ratios. The exit status is then 1.

ONNX Runtime and OpenVINO come with `pip install "fastflow[bench]"`, and are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import cases, gpu
from benchmarks.cases import Block, Maker
from benchmarks.gpu import RESULTS, SIGMA, Row, converted, wider, worst
from benchmarks.published import PublishedWaveGlow, PublishedWN
from fastflow import ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 26)}
"""What makes glibc keep memory: else it maps and unmaps every large tensor, and pages it in anew each time."""
PEERS = ("eager", "eager, kept", "compile", "compile, kept", "onnxruntime", "openvino")
OURS = "fastflow"
RATE = "matrix product"
NEEDS = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}


@dataclass
class CpuRow(Row):
    """One variant of one case, with what a CPU's figures depend on besides."""

    threads: int = 0
    min_ms: float | None = None
    flops: float = 0.0  # that the published formula takes
    rate: float = 0.0  # of matrix products in this dtype in the same run, FLOP/s
    peak_mb: float = 0.0  # resident memory at most while it runs
    load: float = 0.0  # the system's load average at the end

    @property
    def fraction(self) -> float:
        """The published formula's arithmetic over the time, as a fraction of the rate of matrix products."""
        return self.flops / (self.median_ms or 1) * 1e3 / self.rate if self.rate and self.median_ms else 0.0


# The cases


class Problem(NamedTuple):
    """What to run: `published` and `ours` make a function of the inputs each."""

    published: Callable[[], nn.Module]
    ours: Callable[[], Callable[..., Tensor]]
    inputs: tuple[Tensor, ...]
    flops: float
    samples: int = 0  # of audio


class _Calls(nn.Module):
    """A module whose forward is `function`, with the modules that it uses."""

    def __init__(self, modules: Sequence[nn.Module], function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.parts, *inputs)


def waveglow(frames: int, dtype: torch.dtype, tiny: bool) -> Problem:
    """WaveGlow-256 from mel and noise to audio."""
    model = gpu.waveglow(tiny).to(dtype)
    m = Maker(dtype, "cpu")
    inputs = (
        m.randn(1, model.n_mel_channels, frames),
        m.randn(1, model.n_group, frames * model.hop_length // model.n_group),
    )
    return Problem(
        lambda: _Calls([PublishedWaveGlow(model)], lambda parts, mel, z: parts[0](mel, z, SIGMA)),
        lambda: lambda mel, z: model.infer(mel, SIGMA, z=z),
        inputs,
        gpu.infer_case(model, "", 1, frames).flops,
        frames * model.hop_length,
    )


def stacks(blocks: Sequence[tuple[Block, int]], copies: int, dtype: torch.dtype, samples: int = 0) -> Problem:
    """Gated stacks of these blocks and steps, `copies` of each on the same inputs, with weights of their own."""
    made, inputs, flops = [], [], 0.0
    for number, (block, steps) in enumerate(blocks):
        first = block.arguments(Maker(dtype, "cpu", number), 1, steps)
        inputs.append((first[0], first[5], first[9]))
        for copy in range(copies):
            made.append(first if not copy else block.arguments(Maker(dtype, "cpu", 100 * copy + number), 1, 1))
        flops += copies * sum(block.layer_flops(1, steps, i) for i in range(block.layers))
    places = [[t is not None for t in given] for given in inputs]

    def spread(given: Sequence[Tensor]) -> Iterator[list[Tensor | None]]:
        """Each stack's state, conditioning and mask."""
        rest = iter(given)
        for place in places:
            own = [next(rest) if there else None for there in place]
            for _ in range(copies):
                yield own

    def published() -> nn.Module:
        modules = [PublishedWN(*args[1:5], *args[6:8], args[10], args[12]) for args in made]
        return _Calls(
            modules,
            lambda parts, *given: torch.cat(
                [part(*own).flatten() for part, own in zip(parts, spread(given), strict=True)]
            ),
        )

    def ours() -> Callable[..., Tensor]:
        def run(*given: Tensor) -> Tensor:
            return torch.cat(
                [
                    ops.wn(
                        h,
                        *args[1:5],
                        cond,
                        *args[6:8],
                        mask=mask,
                        dilations=args[10],
                        res_scale=args[12],
                        last_residual=args[14],
                    ).flatten()
                    for args, (h, cond, mask) in zip(made, spread(given), strict=True)
                ]
            )

        return run

    return Problem(published, ours, tuple(t for given in inputs for t in given if t is not None), flops, samples)


def flowavenet(dtype: torch.dtype, tiny: bool) -> Problem:
    """FloWaveNet's 48 gated stacks, as for one second: 8 blocks of 6 flows, the conditioning doubling with each."""
    samples = 64 if tiny else 86 * 256
    blocks = []
    for i in range(2 if tiny else 8):
        cond = (4 if tiny else 80) << i
        channels = 8 if tiny else 256
        block = Block("FloWaveNet", channels, 3, 2, (1, 2), cond, res_scale=cases.HALF, last_residual=True)
        blocks.append((block, samples >> i + 1))
    return stacks(blocks, 6, dtype, samples)


def one_block(block: Block, dtype: torch.dtype, tiny: bool) -> Problem:
    """A coupling layer's stack for 10 seconds."""
    toy = Block(block.model, 8, 5, 2, (1,), 6 if block.cond_channels else 0, block.cond, mask=True)
    return stacks([(toy, 40) if tiny else (block, cases.steps_of(block.model, 10))], 1, dtype)


CASES: dict[str, Callable[[torch.dtype, bool], Problem]] = {
    "WaveGlow-256, 80 frames": lambda dtype, tiny: waveglow(3 if tiny else 80, dtype, tiny),  # 0.93 s
    "WaveGlow-256, 400 frames": lambda dtype, tiny: waveglow(5 if tiny else 400, dtype, tiny),  # 4.64 s
    "FloWaveNet stacks, 1 s": flowavenet,
    "VITS stack, 10 s": lambda dtype, tiny: one_block(cases.VITS, dtype, tiny),
    "Glow-TTS stack, 10 s": lambda dtype, tiny: one_block(cases.GLOW_TTS, dtype, tiny),
}


# A variant, in a process of its own


def exported(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    """Write the module as ONNX, in float32."""
    path = folder / "model.onnx"
    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(module.float().eval(), converted(inputs, torch.float32), str(path), dynamo=True)
    return path


def onnxruntime_run(path: Path, inputs: tuple[Tensor, ...], threads: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {i.name: t.float().numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def openvino_run(path: Path, inputs: tuple[Tensor, ...], threads: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    import openvino

    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    given = [t.float().numpy() for t in inputs]
    return lambda: torch.from_numpy(request.infer(given, share_inputs=True)[0])


def variant_run(problem: Problem, variant: str, dtype: torch.dtype, threads: int) -> Callable[[], Tensor]:
    """Return the call that is timed; what it does not need is freed."""
    inputs, name = problem.inputs, variant.split(",")[0]
    if name == OURS:
        ours = problem.ours()
        return lambda: ours(*inputs)
    if name in NEEDS:
        runner = onnxruntime_run if name == "onnxruntime" else openvino_run
        with tempfile.TemporaryDirectory() as folder:
            return runner(exported(problem.published(), inputs, Path(folder)), inputs, threads, dtype)
    module = problem.published().eval()
    function = torch.compile(module, dynamic=False) if name == "compile" else module
    return lambda: function(*inputs)


def peak_of(run: Callable[[], Any]) -> float:
    """Return the resident memory that the process has at most during a run, in MB; 0 where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
        run()
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return 0.0


@torch.no_grad()
def expect(spec: dict[str, Any]) -> None:
    """Write what a case's variants are checked against: the published formula in a wider dtype and in this one."""
    dtype = DTYPES[spec["dtype"]]
    torch.set_num_threads(spec["threads"])
    problem = CASES[spec["case"]](dtype, spec["tiny"])
    module = problem.published()  # its weights are rounded already, so that the rounding is in nobody's error
    plain = module(*problem.inputs)
    expected = module.to(wider(dtype))(*converted(problem.inputs, wider(dtype)))
    torch.save({"expected": expected, "plain": plain}, spec["file"])


@torch.no_grad()
def worker(spec: dict[str, Any]) -> None:
    """Answer on standard output: first the row, checked; then the milliseconds of a run for each line read."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    dtype = DTYPES[spec["dtype"]]
    torch.set_num_threads(spec["threads"])
    row = CpuRow("cpu", spec["case"], "", spec["dtype"], spec["variant"], threads=spec["threads"])
    if spec["variant"] == RATE:
        n = 64 if spec["tiny"] else 1024
        a, b = (Maker(dtype, "cpu", seed).randn(n, n) for seed in (0, 1))
        row.flops = 2.0 * n**3
        run: Callable[[], Any] = lambda: torch.mm(a, b)  # noqa: E731
        run()
    else:
        problem = CASES[spec["case"]](dtype, spec["tiny"])
        row.flops, row.samples = problem.flops, problem.samples
        run = variant_run(problem, spec["variant"], dtype, spec["threads"])
        del problem
        try:
            known = torch.load(spec["file"], weights_only=True)
            worst(row, run(), known["expected"], known["plain"], dtype)
            del known
        except Exception as error:
            row.refused = f"{type(error).__name__}: {error}".splitlines()[0]
        gc.collect()
    if not row.refused:
        run()
        row.peak_mb = peak_of(run)
    answer(asdict(row))
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        answer((time.perf_counter() - start) * 1e3)


# The run


class Worker:
    """A variant's process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        kept = KEPT if spec["variant"].endswith(", kept") else {}
        threads = str(spec["threads"])
        self.spec, self.times = spec, list[float]()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu", "--worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | kept | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        answer = self._answer()
        self.row = (
            CpuRow(**answer)
            if isinstance(answer, dict)
            else CpuRow("cpu", spec["case"], "", spec["dtype"], spec["variant"], refused=answer)
        )

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        said = [text for text in self.errors.read().splitlines() if text.strip()]
        return f"its process ended: {said[-1] if said else 'it said nothing'}"

    def time(self) -> None:
        """Run once."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._answer()
        if isinstance(answer, str):
            self.row.refused = answer
        else:
            self.times.append(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def bench(spec: dict[str, Any], variants: Sequence[str], rounds: int) -> list[CpuRow]:
    """Run one case in one dtype on all variants, taking turns, and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        spec = spec | {"file": str(Path(folder) / "expected.pt")}
        command = [sys.executable, "-m", "benchmarks.cpu", "--expect", json.dumps(spec)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        workers = []
        try:
            for name in (RATE, *variants):  # one after the other, so that no one's start disturbs another's check
                workers.append(Worker(spec | {"variant": name}))
            for r in range(rounds):
                for w in workers[r % len(workers) :] + workers[: r % len(workers)]:
                    if not w.row.refused:
                        w.time()
        finally:
            for w in workers:
                w.close()
    rows = []
    for w in workers:
        row = w.row
        if not row.refused:
            quantiles = statistics.quantiles(w.times, n=10, method="inclusive")
            row.median_ms, row.p20_ms, row.p80_ms = statistics.median(w.times), quantiles[1], quantiles[7]
            row.min_ms, row.rounds = min(w.times), rounds
        rows.append(row)
    rate = rows[0]
    for row in rows:
        row.rate = rate.flops / rate.median_ms * 1e3 if rate.median_ms else 0.0
        row.load = os.getloadavg()[0]
    return rows


def table(rows: Sequence[CpuRow]) -> str:
    """Return one case's rows as a table; ratios only where ours is right."""
    ours = next((row for row in rows if row.variant == OURS), None)
    lines = [
        f"{rows[0].case}, {rows[0].dtype}, {rows[0].threads} threads, load {rows[0].load:.1f}, "
        f"matrix products {rows[0].rate / 1e9:.0f} GFLOP/s",
        "| variant | ms, median [20 %, 80 %] | ms, least | times as long as ours | of the rate | peak MB | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.variant == RATE:
            continue
        if row.median_ms is None or row.min_ms is None:
            lines.append(f"| {row.variant} | {row.refused} | | | | | |")
            continue
        ratio = ""
        if ours and ours.median_ms and ours.min_ms:
            ratio = f"{row.median_ms / ours.median_ms:.2f} ({row.min_ms / ours.min_ms:.2f})"
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append(
            f"| {row.variant} | {row.median_ms:.1f} [{row.p20_ms:.1f}, {row.p80_ms:.1f}] | {row.min_ms:.1f} | {ratio} "
            f"| {row.fraction:.2f} | {row.peak_mb:.0f} | {error} |"
        )
    if ours and ours.refused:
        lines.append(f"No ratios: {OURS} is wrong.")
    return "\n".join(lines)


def machine() -> str:
    """Name this machine's results."""
    model = ""
    with contextlib.suppress(OSError):
        found = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        model = found[0] if found else ""
    words = re.findall(r"[a-z0-9]+", f"cpu {model} {torch.backends.cpu.get_cpu_capability()}".lower())
    return "-".join(words)


def store(rows: Sequence[CpuRow], folder: Path) -> None:
    """Add rows of one part to those of earlier runs; a newer one replaces an older."""
    path = folder / machine() / f"{rows[0].part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = {(*CpuRow(**row).key(), row["threads"]): row for row in before}
    kept |= {(*row.key(), row.threads): asdict(row) for row in rows}
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")


def missing(variant: str) -> list[str]:
    return [name for name in NEEDS.get(variant, ()) if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=(*PEERS, OURS), default=[*PEERS, OURS])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="what else is known of the machine's state; stored with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=gpu.commit(), help="what the rows say was measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--expect", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker or options.expect:
        worker(json.loads(options.worker)) if options.worker else expect(json.loads(options.expect))
        return 0
    about = gpu.about(torch.device("cpu"), options.commit) | {"cores": str(os.cpu_count()), "note": options.note}
    about |= {name: gpu._version(name) for name in ("onnxruntime", "openvino")}
    variants = []
    for name in options.variants:
        if missing(name):
            print(f"{name} is left out: {', '.join(missing(name))} cannot be imported")
        else:
            variants.append(name)
    failed = False
    for case in options.case:
        for dtype in options.dtype:
            spec = {"case": case, "dtype": dtype, "threads": options.threads, "tiny": options.tiny}
            # ONNX Runtime has no bfloat16 on CPUs
            able = [name for name in variants if (name, dtype) != ("onnxruntime", "bfloat16")]
            rows = bench(spec, able, options.rounds)
            for row in rows:
                row.about = about
            failed |= any(row.refused for row in rows)
            store(rows, options.out)
            print(table(rows) + "\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
