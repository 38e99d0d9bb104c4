"""The compiled CUDA kernels: no spills, the right instructions, for every architecture; and the check can fail."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton, which brings the disassembler, is not installed")

from benchmarks import compiled
from benchmarks.compiled import Row

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc" / "cuda"

needs_library = pytest.mark.skipif(not compiled.LIBRARY.exists(), reason="fastflow/_cuda.so is not built")


@needs_library
def test_every_kernel_keeps_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    status = compiled.main(["--json", str(path)])
    printed = capsys.readouterr().out
    with capsys.disabled():  # the table belongs into the log, whatever is in it
        print(f"\n{printed}")
    assert status == 0, printed[printed.rindex("\n\n") :]
    rows = [Row(**row) for row in json.loads(path.read_text())]
    archs = sorted({row.arch for row in rows}, key=compiled.capability)
    for tag, made_for in (
        ("sm80", [arch for arch in archs if compiled.capability(arch) >= 80]),
        ("sm90", [arch for arch in archs if arch == "sm_90a"]),
    ):
        if any(tag in path.stem for path in CSRC.glob("*.cu")):
            found = {row.arch for row in rows if tag in row.kernel.split("<")[0]}
            assert found == set(made_for or archs[:1])  # one that is for none of them is there to be linked
    assert max(Counter((row.kernel, row.arch) for row in rows).values()) == 1, "two kernels have the same short name"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_spills_and_missing_instructions_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, path = tmp_path / "toy.so", tmp_path / "rows.json"
    command = ["nvcc", "-std=c++20", "-O3", "-shared", "-gencode=arch=compute_80,code=sm_80", "-Xcompiler=-fPIC"]
    subprocess.run([*command, HERE / "spilling.cu", "-o", library], check=True)
    assert compiled.main(["--library", str(library), "--json", str(path)]) == 1
    printed = capsys.readouterr().out
    spilling, good, without = sorted((Row(**row) for row in json.loads(path.read_text())), key=lambda row: row.kernel)
    assert (spilling.kernel, good.kernel, without.kernel) == (
        "spilling<float>",
        "toy_sm80<4>",
        "toy_sm80_without_products<3>",
    )
    assert spilling.registers == 64 and spilling.stack > 0 and spilling.instructions["BAR"] == 1
    assert spilling.instructions["LDL"] and spilling.instructions["STL"]
    spills = spilling.instructions["LDL"] + spilling.instructions["STL"]
    assert spilling.violation() == f"spills: {spills} local loads and stores, {spilling.stack} bytes of stack"
    assert good.instructions == {"HMMA": 1} and not good.violation()
    assert without.violation() == "no HMMA"
    assert re.search(
        r"3 kernels, 2 violations\nspilling<float> sm_80: spills: .*\ntoy_sm80_without.*: no HMMA", printed
    )
    with pytest.raises(SystemExit):
        compiled.main(["--library", str(library), "--arch", "sm_90a"])
    assert "has no code for sm_90a" in capsys.readouterr().err


def test_each_instruction_set_has_its_rule() -> None:
    def said(kernel: str, arch: str, **instructions: int) -> str:
        return Row(kernel, arch, 32, 0, 0, instructions).violation()

    assert said("wn_sm90_kernel<bf16>", "sm_90a", HMMA=1, UTMALDG=1) == "no HGMMA"
    assert said("wn_sm90_kernel<bf16>", "sm_90a") == "no HGMMA and no UTMALDG"
    assert said("wn_sm90_kernel<bf16>", "sm_90a", HGMMA=1, UTMALDG=1) == ""
    assert said("wn_sm90_kernel<bf16>", "sm_80") == ""  # only there to be linked
    assert said("wn_sm80_kernel<bf16>", "sm_120", FFMA=1) == "no HMMA"
    assert said("wn_sm80_kernel<bf16>", "sm_75", FFMA=1) == ""
    assert said("wn_portable_kernel<wn_sm80>", "sm_80", FFMA=1) == ""
    assert said("wn_portable_kernel<float>", "sm_80", LDL=1) == "spills: 1 local loads and stores, 0 bytes of stack"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void fastflow::(anonymous namespace)::gate<float>(fastflow::GateParams<float>)", "gate<float>"),
        ("fastflow::plain(int)", "plain"),
        (
            "void fastflow::wn_sm80<__nv_bfloat16, fastflow::Tile<(int)64, 128>, (bool)1>(fastflow::WnParams<__half>)",
            "wn_sm80<bf16, Tile<64, 128>, 1>",
        ),
        ("_ZN8mangled", "_ZN8mangled"),
    ],
)
def test_names_are_shortened(name: str, short: str) -> None:
    assert compiled.shortened(name) == short


def test_a_missing_library_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compiled.main(["--library", str(tmp_path / "none.so")])
    assert "none.so" in capsys.readouterr().err
