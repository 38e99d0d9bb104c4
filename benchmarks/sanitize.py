"""Run every CUDA kernel once, at small sizes, under NVIDIA's compute-sanitizer.

    python -m benchmarks.sanitize                     # memcheck and racecheck, side by side
    python -m benchmarks.sanitize --tool synccheck
    python -m benchmarks.sanitize --only-run          # the calls alone, without the sanitizer

Only kernels of this project are checked. Each tensor gets memory of its own, so that what lies beyond its end belongs
to nobody. The exit status is 1 if a tool found something, if it took too long, or if there is no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch

from benchmarks import programs
from fastflow import use_backend
from fastflow.bench import cases
from fastflow.bench.cases import Block, Case
from fastflow.ops import registry

TOOLS = ("memcheck", "racecheck")
USUAL = "/usr/local/cuda"
FOUND = 9  # exit status of a tool that found something
MOST = 20_000  # characters of a tool's output, its last ones
HALF = (torch.bfloat16, torch.float16)

# Stacks for each family of kernels: sizes of WaveGlow-256, which is what the kernels for Hopper are for; others in
# multiples of 8, which is what matrix instructions and 16-byte copies take; and odd ones, for the portable kernels.
BLOCKS = (
    Block("WaveGlow-256", 256, 3, 3, (1, 2, 4), 640),
    Block("global conditioning", 64, 5, 2, (1,), 24, "global", mask=True, skip=32),
    Block("input bias", 40, 3, 3, (1, 4), 16, input_bias=True, res_scale=0.7, last_residual=True),
    Block("odd", 6, 3, 3, (1, 3), 5, mask=True),
)
STEPS = 150  # more than one tile of any kernel, the last one short
LONG = 10_001  # so many tiles that kernels choose the largest


def small_cases() -> list[Case]:
    """Every operation and its backward: stacks of each family, flows with few and with many channels."""
    made: list[Case] = []
    with mock.patch.object(cases, "steps_of", return_value=LONG):
        made += cases.block_cases(BLOCKS[0], 10, 2, ops=("wn",), main=False)
    with mock.patch.object(cases, "steps_of", return_value=STEPS):
        for block in BLOCKS:
            made += cases.block_cases(block, 1, 2, ops=cases.ALL_BLOCK_OPS, main=False)
        for channels, form in ((8, "exp"), (6, "sigmoid"), (4, "additive"), (40, "exp")):
            made += cases.small_cases("flow", channels, 1, form=form, mask=True, invconv=True, actnorm=True, main=False)
        for channels in (8, 4):
            made += cases.flow_step_cases(BLOCKS[1], channels, 2, 1, main=False)
        made += cases.gate_cases(BLOCKS[3], 1, main=False)
    return made


def calls() -> Iterator[tuple[str, Case, torch.dtype, bool]]:
    """Yield a name, the case, its dtype and whether float32 may be rounded to tf32."""
    for case in small_cases():
        for dtype in HALF if "10 s" in case.name else (*HALF, torch.float32, torch.float64):
            for tf32 in (False, True) if dtype == torch.float32 else (False,):
                yield f"{case.op} | {case.name} | {'tf32' if tf32 else dtype}", case, dtype, tf32


def run_all(device: str, backend: str) -> int:
    """Make every call; return how many."""
    count = 0
    with use_backend(backend):  # raises with the reason where it cannot run
        for name, case, dtype, tf32 in calls():
            args = case.arguments(dtype, device)
            if registry._unsupported(backend, case.op, args[0]) is not None:
                continue
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
            print(name, flush=True)
            registry._implementations[backend][case.op](*args)
            if device == "cuda":
                torch.cuda.synchronize()
            count += 1
    print(f"{count} calls")
    return count


def find_sanitizer() -> str | None:
    """Return compute-sanitizer from PATH, CUDA_HOME or the usual folder."""
    folders = [str(Path(home) / "bin") for home in (os.environ.get("CUDA_HOME"), USUAL) if home]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def check(sanitizer: str, tools: Sequence[str], seconds: float) -> list[str]:
    """Run the tools side by side; print what they say, and return what is wrong."""
    options = [f"--error-exitcode={FOUND}", "--kernel-regex", "kns=fastflow"]
    worker = programs.python("benchmarks.sanitize", "--only-run")
    commands = [[sanitizer, "--tool", tool, *options, *worker] for tool in tools]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    wrong = []
    for tool, done in zip(tools, programs.run(commands, seconds, environment=environment), strict=True):
        print(f"{tool}:\n{done.output[-MOST:]}", flush=True)
        if done.status is None:
            wrong.append(f"{tool} was not through after {seconds:g} seconds")
        elif done.status == FOUND:
            wrong.append(f"{tool} found something: see above")
        elif done.status:
            wrong.append(f"{tool} failed with status {done.status}: see above")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tool", nargs="+", default=list(TOOLS), help="default: memcheck racecheck")
    parser.add_argument("--seconds", type=float, default=600, help="that the tools, side by side, may take")
    parser.add_argument("--only-run", action="store_true", help="make the calls, without the sanitizer")
    parser.add_argument("--device", default="cuda", help="with --only-run")
    parser.add_argument("--backend", default="cuda", help="with --only-run")
    options = parser.parse_args(arguments)
    if options.only_run:
        return 0 if run_all(options.device, options.backend) else 1
    sanitizer = find_sanitizer()
    if sanitizer is None:
        parser.exit(
            1,
            f"compute-sanitizer was not found on PATH, in CUDA_HOME/bin or in {USUAL}/bin: the kernels are not "
            "checked. It is a part of the CUDA toolkit (package cuda-sanitizer).\n",
        )
    wrong = check(sanitizer, options.tool, options.seconds)
    print("\n".join(wrong) or f"{', '.join(options.tool)}: nothing found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
