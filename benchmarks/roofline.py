"""What a GPU needs at least for each published size: a table in Markdown.

python -m benchmarks.roofline                             prints it
python -m benchmarks.roofline --write benchmarks/README.md   puts it between that file's markers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastflow.bench.cases import CASES, Case

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- begin roofline -->\n", "<!-- end roofline -->\n"


class Device(NamedTuple):
    """Rates of a GPU; TFLOP/s dense, with float32 accumulation."""

    name: str
    half: float  # matrix products in float16 and bfloat16
    float32: float  # float32 without tf32; also what elementwise arithmetic runs at
    bandwidth: float  # TB/s
    source: str


DEVICES = (
    Device(
        "H200",
        790.0,
        67.0,
        4.3,
        "bf16 products and bandwidth measured (8192³ product; device-to-device copy, bytes read plus written); float32 "
        "from NVIDIA's H200 datasheet, which has 989 and 4.8",
    ),
    Device("L4", 121.0, 30.3, 0.300, "NVIDIA's L4 datasheet (242 with sparsity, half of it dense)"),
    Device("RTX 4090", 165.2, 82.6, 1.008, "NVIDIA's Ada GPU architecture whitepaper, appendix A"),
)


class Limit(NamedTuple):
    """The least time for a case on a device."""

    microseconds: float
    binds: str  # "arithmetic" or "memory"


def limit(case: Case, dtype: torch.dtype, device: Device) -> Limit:
    rate = device.half if case.matrix and dtype != torch.float32 else device.float32
    arithmetic = case.flops / (rate * 1e6)
    memory = case.bytes(dtype) / (device.bandwidth * 1e6)
    return Limit(arithmetic, "arithmetic") if arithmetic >= memory else Limit(memory, "memory")


def _figure(value: float) -> str:
    """About three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def table(cases: Sequence[Case] = CASES) -> str:
    lines = [
        "| operation | size | dtype | MFLOP | MB | FLOP per byte | "
        + " | ".join(f"{d.name}, µs" for d in DEVICES)
        + " |",
        "|---|---|---|---:|---:|---:|" + "---:|" * len(DEVICES),
    ]
    seen = set()
    for case in sorted(cases, key=lambda c: c.op):
        key = (case.op, case.name.removesuffix(", reverse").removesuffix(", forward"), case.flops, case.elements)
        if key in seen:  # the other direction, which costs the same
            continue
        seen.add(key)
        for dtype, short in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
            limits = [limit(case, dtype, device) for device in DEVICES]
            cells = " | ".join(f"{_figure(x.microseconds)} {x.binds[0].upper()}" for x in limits)
            lines.append(
                f"| `{case.op}` | {case.name} | {short} | {_figure(case.flops / 1e6)} "
                f"| {_figure(case.bytes(dtype) / 1e6)} | {_figure(case.flops / case.bytes(dtype))} | {cells} |"
            )
    return "\n".join(lines) + "\n"


def text() -> str:
    """The generated part of the README."""
    lines = [
        "`A`: arithmetic binds; `M`: memory binds. An operation's bytes are its inputs read once and its outputs",
        "written once, whatever lies between; float32 is IEEE arithmetic, not tf32. Launching, some microseconds, is",
        "not in it. The rates:",
        "",
        "| GPU | bf16 and fp16 products, TFLOP/s | float32, TFLOP/s | memory, TB/s | source |",
        "|---|---:|---:|---:|---|",
    ]
    for d in DEVICES:
        lines.append(f"| {d.name} | {d.half:g} | {d.float32:g} | {d.bandwidth:g} | {d.source} |")
    return "\n".join(lines) + "\n\n" + table()


def generated(readme: str) -> str:
    """Return the README's text with its generated part made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + text() + "\n" + END + after


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", type=Path, metavar="README", help="renew the generated part of this file")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(text(), end="")
    else:
        options.write.write_text(generated(options.write.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
