"""Check and time whole models and blocks on a CPU, beside what else runs them.

    python -m benchmarks.cpu                                # everything: an hour and more
    python -m benchmarks.cpu --case "WaveGlow-256, 80 frames" --dtype float32 --rounds 5
    python -m benchmarks.cpu --tiny                         # the same code at toy sizes, to see that it runs

Variants: the published arithmetic in PyTorch, eager and compiled; the same with allocations kept, for which glibc is
told never to hand memory back to the system; eager with the channels of a step beside each other; ONNX Runtime;
OpenVINO; fastflow, as `auto` has it, and once more, for the noise; WaveGlow with the conditioning's weights composed
with the upsampler and kept (`compose_conditioning("kept")`). HiFi-GAN V1 makes as much audio of the same mel: it
is no flow, and checked against itself. Each is a process of its own, since the allocator belongs to a process; they
take turns, and two more among them multiply matrices and copy, for the rates that the others are held against.
Each is checked before it is timed, as in `benchmarks.gpu`: what is out
of bounds gets no time, and while that is fastflow there are no ratios. The exit status is then 1.

ONNX Runtime and OpenVINO come with `pip install "fastflow[bench]"`, and are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastflow import ops
from fastflow.bench import cases, models, rows, text
from fastflow.bench.cases import Block, Case, Maker
from fastflow.bench.check import converted, wider, worst
from fastflow.bench.models import SIGMA
from fastflow.bench.processes import Answers, Ended, Process
from fastflow.bench.published import PublishedSqueezeWave, PublishedWaveGlow, PublishedWN, hifi_gan
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, COPY, RATE, Own, peak_mb, rates
from fastflow.models import SqueezeWave

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 26)}
"""What makes glibc keep memory: else it maps and unmaps every large tensor, and pages it in anew each time."""
CHANNELS_LAST, HIFI_GAN = "eager, channels last", "HiFi-GAN V1, eager"
PEERS = ("eager", "eager, kept", CHANNELS_LAST, "compile", "compile, kept", "onnxruntime", "openvino", HIFI_GAN)
OURS = "fastflow"
COMPOSED = "fastflow, composed"
TURN_MS = 500.0  # a variant's turn lasts at least so long
VARIANTS = (*PEERS, OURS, OURS + AGAIN, COMPOSED)
NEEDS = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}


# The cases


class Problem(NamedTuple):
    """What to run: `published` and `ours` make a function of the inputs each."""

    published: Callable[[], nn.Module]
    ours: Callable[[], Callable[..., Tensor]]
    inputs: tuple[Tensor, ...]
    cost: Case
    samples: int = 0  # of audio
    composed: Callable[[], Callable[..., Tensor]] | None = None


class _Calls(nn.Module):
    """A module whose forward is `function`, with the modules that it uses."""

    def __init__(self, modules: Sequence[nn.Module], function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.parts, *inputs)


def waveglow(frames: int, dtype: torch.dtype, tiny: bool, batch: int = 1) -> Problem:
    """WaveGlow-256 from mel and noise to audio."""
    model = models.waveglow(tiny).to(dtype)
    m = Maker(dtype, "cpu")
    inputs = (
        m.randn(batch, model.n_mel_channels, frames),
        m.randn(batch, model.n_group, frames * model.hop_length // model.n_group),
    )

    def composed() -> Callable[..., Tensor]:
        model.compose_conditioning("kept")
        return lambda mel, z: model.infer(mel, SIGMA, z=z)

    return Problem(
        lambda: _Calls([PublishedWaveGlow(model)], lambda parts, mel, z: parts[0](mel, z, SIGMA)),
        lambda: lambda mel, z: model.infer(mel, SIGMA, z=z),
        inputs,
        models.infer_case(model, "", batch, frames),
        batch * frames * model.hop_length,
        composed,
    )


def squeezewave(frames: int, dtype: torch.dtype, tiny: bool) -> Problem:
    """SqueezeWave, a128c256, from mel and noise to audio."""
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_channels": 8} if tiny else {"n_layers": 8, "n_channels": 256}
    model = SqueezeWave(80, 4 if tiny else 12, 128, 2, 16, sizes | {"kernel_size": 3}).eval()
    for net in model.WN:
        torch.nn.init.normal_(net.end.weight, std=0.1 / net.end.weight.shape[1] ** 0.5)
    model = model.to(dtype)
    m = Maker(dtype, "cpu")
    steps = frames * model.hop_length // model.n_group
    inputs = (m.randn(1, model.n_mel_channels, frames), m.randn(1, model.n_group, steps))
    published = PublishedSqueezeWave(model)
    elements = sum(p.numel() for p in model.parameters()) + frames * (model.n_mel_channels + 2 * model.hop_length)
    return Problem(
        lambda: _Calls([copy.deepcopy(published)], lambda parts, mel, z: parts[0](mel, z, SIGMA)),
        lambda: lambda mel, z: model.infer(mel, SIGMA, z=z),
        inputs,
        Case("", "infer", lambda m: (), published.flops(frames, steps), elements),
        frames * model.hop_length,
    )


def stacks(blocks: Sequence[tuple[Block, int]], copies: int, dtype: torch.dtype, samples: int = 0) -> Problem:
    """Gated stacks of these blocks and steps, `copies` of each on the same inputs, with weights of their own."""
    made, inputs, flops, elements = [], [], 0.0, 0.0
    for number, (block, steps) in enumerate(blocks):
        first = block.arguments(Maker(dtype, "cpu", number), 1, steps)
        inputs.append((first[0], first[5], first[9]))
        for twin in range(copies):
            made.append(first if not twin else block.arguments(Maker(dtype, "cpu", 100 * twin + number), 1, 1))
        flops, elements = flops + copies * block.flops(1, steps), elements + copies * block.elements(1, steps)
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

    cost = Case("", "wn", lambda m: (), flops, elements)
    return Problem(published, ours, tuple(t for given in inputs for t in given if t is not None), cost, samples)


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
    "WaveGlow-256, 20 frames": lambda dtype, tiny: waveglow(2 if tiny else 20, dtype, tiny),  # 0.23 s
    "WaveGlow-256, 80 frames": lambda dtype, tiny: waveglow(3 if tiny else 80, dtype, tiny),  # 0.93 s
    "WaveGlow-256, 43 frames, batch 4": lambda dtype, tiny: waveglow(3 if tiny else 43, dtype, tiny, 4),  # 0.5 s each
    "WaveGlow-256, 400 frames": lambda dtype, tiny: waveglow(33 if tiny else 400, dtype, tiny),  # 4.64 s
    "FloWaveNet stacks, 1 s": flowavenet,
    "SqueezeWave, 80 frames": lambda dtype, tiny: squeezewave(3 if tiny else 80, dtype, tiny),
    "SqueezeWave, 2584 frames": lambda dtype, tiny: squeezewave(5 if tiny else 2584, dtype, tiny),  # 30 s
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
        made = problem.composed if variant == COMPOSED else problem.ours
        assert made is not None
        ours = made()
        return lambda: ours(*inputs)
    if name in NEEDS:
        runner = onnxruntime_run if name == "onnxruntime" else openvino_run
        with tempfile.TemporaryDirectory() as folder:
            return runner(exported(problem.published(), inputs, Path(folder)), inputs, threads, dtype)
    module = problem.published().eval()
    if variant == CHANNELS_LAST:
        for parameter in module.parameters():
            parameter.data = models.laid_out(parameter.data)
        inputs = models.laid_out(inputs)
    function = torch.compile(module, dynamic=False) if name == "compile" else module
    return lambda: function(*inputs)


def yardstick(problem: Problem, dtype: torch.dtype, tiny: bool) -> tuple[Own, Callable[[], Tensor]]:
    """Return HiFi-GAN V1 on the problem's mel, and what it is checked against."""
    mel = problem.inputs[0]
    gan = hifi_gan(mel.shape[1], tiny).to(dtype)
    expected = copy.deepcopy(gan).to(wider(dtype))(mel.to(wider(dtype)))
    return Own(expected, gan(mel), gan.flops(*mel.shape[::2])), lambda: gan(mel)


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
    """Answer: first the row, checked; then the milliseconds of a run for each line read."""
    answers = Answers()
    dtype, variant = DTYPES[spec["dtype"]], spec["variant"]
    torch.set_num_threads(spec["threads"])
    row = Row("cpu", spec["case"], "", spec["dtype"], variant, threads=spec["threads"])
    if variant in (RATE, COPY):
        held = rates(dtype, torch.device("cpu"), spec["tiny"])
        row.flops, row.bytes = (held.work[variant], 0.0) if variant == RATE else (0.0, held.work[variant])
        run: Callable[[], Any] = lambda: held.runs[variant](0)  # noqa: E731
        run()
    else:
        problem = CASES[spec["case"]](dtype, spec["tiny"])
        row.flops, row.bytes, row.samples = problem.cost.flops, problem.cost.bytes(dtype), problem.samples
        try:
            if variant == HIFI_GAN:
                own, run = yardstick(problem, dtype, spec["tiny"])
                row.flops, row.bytes = own.flops, 0.0
                known = {"expected": own.expected, "plain": own.plain}
                start = time.perf_counter()
            else:
                known = torch.load(spec["file"], weights_only=True)
                start = time.perf_counter()
                run = variant_run(problem, variant, dtype, spec["threads"])
            del problem
            got = run()
            row.first_ms = (time.perf_counter() - start) * 1e3  # with the export, the compilation, the packing
            worst(row, got, known["expected"], known["plain"], dtype)
            del known, got
        except Exception as error:
            row.refused = f"{type(error).__name__}: {error}".splitlines()[0]
        gc.collect()
    if not row.refused:
        run()
        row.peak_mb = peak_mb(run)
    answers.send(asdict(row))
    for _ in answers.questions():
        answers.send(turn(run))


def turn(run: Callable[[], Any]) -> float:
    """Return the milliseconds of a run; of a short one, the median of as many as fill a turn.

    The first of those is left out: it finds the caches full of what another process used, whose threads may still spin.
    """
    times: list[float] = []
    while not times or sum(times) < TURN_MS:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:] or times)


# The run


class Worker:
    """A variant's process: a program that takes `--worker` and answers as `worker` does."""

    module = "benchmarks.cpu"
    part = "cpu"  # of the row, where the process ends before it sends one

    def __init__(self, spec: dict[str, Any]) -> None:
        threads = str(spec["threads"])
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if spec["variant"].removesuffix(AGAIN).endswith(", kept"):
            environment |= KEPT
        self.times: list[Any] = []  # milliseconds, or what else `worker` answers
        self.row = Row(self.part, spec["case"], "", spec["dtype"], spec["variant"], threads=spec["threads"])
        self.row.flows = spec.get("flows", 0)
        arguments = ["--worker", json.dumps(spec)]
        self._process = Process(self.module, arguments, folder=ROOT, environment=environment)
        try:
            self.row = Row(**self._process.answer())
        except Ended as error:
            self.row.refused = str(error)

    def time(self) -> None:
        """Run once."""
        try:
            self.times.append(self._process.ask("run"))
        except Ended as error:
            self.row.refused = str(error)

    def close(self) -> None:
        self._process.close()


def take_turns(workers: Sequence[Worker], rounds: int) -> None:
    """Let each that is right run once a round; who begins changes from round to round."""
    for r in range(rounds):
        for i in range(len(workers)):
            worker = workers[(r + i) % len(workers)]
            if not worker.row.refused:
                worker.time()


def bench(spec: dict[str, Any], variants: Sequence[str], rounds: int) -> list[tuple[Row, list[float]]]:
    """Run one case in one dtype on all variants, taking turns, and return their rows and times."""
    with tempfile.TemporaryDirectory() as folder:
        spec = spec | {"file": str(Path(folder) / "expected.pt")}
        command = [sys.executable, "-m", "benchmarks.cpu", "--expect", json.dumps(spec)]
        subprocess.run(command, check=True, cwd=ROOT)
        workers = []
        try:
            for name in (RATE, COPY, *variants):  # one after the other, so that no one's start disturbs another's check
                workers.append(Worker(spec | {"variant": name}))
            take_turns(workers, rounds)
        finally:
            for w in workers:
                w.close()
    for w in workers:
        if w.row.refused:
            w.times.clear()
        else:
            w.row.set_times(w.times)
    rate, copied = (w.row for w in workers[:2])
    for w in workers:
        w.row.rate = rate.flops / rate.median_ms * 1e3 if rate.median_ms else 0.0
        w.row.copy = copied.bytes / copied.median_ms * 1e3 if copied.median_ms else 0.0
        w.row.load = os.getloadavg()[0]
    return [(w.row, w.times) for w in workers]


def able(variants: Sequence[str], case: str, dtype: str) -> list[str]:
    """Return the variants that there are of a case: ONNX Runtime has no bfloat16 on CPUs; only WaveGlow takes a mel."""
    left_out = {("onnxruntime", "bfloat16")}
    mel = case.startswith("WaveGlow")
    return [name for name in variants if (name, dtype) not in left_out and (mel or name not in (HIFI_GAN, COMPOSED))]


def missing(variant: str) -> list[str]:
    return [name for name in NEEDS.get(variant, ()) if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="what else is known of the machine's state; stored with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=rows.commit(), help="what the rows say was measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--expect", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker or options.expect:
        worker(json.loads(options.worker)) if options.worker else expect(json.loads(options.expect))
        return 0
    about = rows.about(torch.device("cpu"), options.commit) | {"note": options.note}
    about |= {name: rows.version(name) for name in ("onnxruntime", "openvino")}
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
            measured = [row for row, _ in bench(spec, able(variants, case, dtype), options.rounds)]
            for row in measured:
                row.about = about
            failed |= any(row.refused for row in measured)
            rows.store(measured, options.out / rows.machine(torch.device("cpu")))
            print(text.case_table(measured) + "\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
