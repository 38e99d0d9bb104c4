"""Every Triton kernel compiles for every architecture without spills; and the check can fail.

Compiling needs a process in which Triton does not interpret: hence the subprocesses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastflow.ops import registry

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
ARCHS = ("sm_80", "sm_90", "sm_100")

SPILLS = """
import json, sys
import torch
from benchmarks import resources
from tests.benchmarks.spilling import fitting_kernel, spilling_kernel

arch, size = sys.argv[1], int(sys.argv[2])
for kernel in (spilling_kernel, fitting_kernel):
    n = size if kernel is spilling_kernel else 32
    x = torch.empty(n, n, dtype=torch.bfloat16, device="meta")
    launch = resources.Launch(kernel, (x, x, n), {}, {"num_warps": 4, "num_stages": 2})
    row = resources.Row(kernel.__name__, ["toy"], ["toy"], "bf16", arch, launch.config)
    with resources._device(arch):
        resources.inspect(launch.compile(), row, sass=True)
    print(json.dumps([row.__dict__, row.violation()]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(("arch", "size", "matrix"), [("sm_80", 128, "HMMA"), ("sm_90", 128, "HGMMA")])
def test_spills_are_found(arch: str, size: int, matrix: str) -> None:
    done = run("-c", SPILLS, arch, str(size))
    assert done.returncode == 0, done.stderr
    (bad, said), (good, nothing) = map(json.loads, done.stdout.splitlines())
    assert bad["spills"] > 0 and bad["stack"] > 0 and bad["registers"] > 0
    assert said.startswith(f"spills: {bad['spills']} local loads and stores, {bad['stack']} bytes of stack")
    assert matrix in bad["matrix"]
    assert good["spills"] == good["stack"] == 0 and good["registers"] > 0
    assert nothing == ""


def test_an_unknown_architecture_is_named() -> None:
    done = run("-m", "benchmarks.resources", "--arch", "sm_42")
    assert done.returncode == 2 and "--arch must be one of sm_80, " in done.stderr and "got 'sm_42'" in done.stderr


def test_too_much_shared_memory_and_serialized_products_are_violations() -> None:
    from benchmarks.resources import Row

    row = Row("toy", ["toy"], ["toy"], "bf16", "sm_89", {}, shared=101377, limit=101376)
    assert row.violation() == "101377 bytes of shared memory; the device has 101376"
    row = Row("toy", ["toy"], ["toy"], "bf16", "sm_90", {}, serialized=True)
    assert row.violation() == "the matrix instructions run one at a time"


def test_every_kernel_compiles_without_spills_at_published_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    done = run("-m", "benchmarks.resources", "--quick", "--arch", *ARCHS, "--json", str(path))
    with capsys.disabled():  # the table belongs into the log, whatever is in it
        print(f"\n{done.stdout}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    registry._load_triton()
    for op in registry._implementations["triton"]:
        for arch in ARCHS:
            for dtype in ("fp32", "bf16") if arch == "sm_80" else ("bf16",):
                assert any(row["arch"] == arch and row["dtype"] == dtype and op in row["ops"] for row in rows), (
                    f"nothing was compiled for {op} on {arch} in {dtype}"
                )
    half = [row for row in rows if row["kernel"].startswith("wn_layer_fwd") and row["dtype"] != "fp32"]
    wanted = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    assert half and all(wanted[row["arch"]] in row["matrix"] and row["async_copy"] for row in half)


def test_it_does_not_run_where_kernels_are_interpreted() -> None:
    command = [sys.executable, "-m", "benchmarks.resources", "--main"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 2 and "TRITON_INTERPRET is set" in done.stderr
