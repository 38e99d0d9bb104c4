"""Builds csrc/emulator together with csrc/cuda, as a Python module that runs the kernels on the CPU.

`python -m tests.emulator.library` builds it and says where it is. Needs a C++20 compiler, ninja and pybind11.
"""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pybind11
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "emulator"
NAME = "fastflow_emulator"

# -O1 where compiling takes long and running does not: the kernels spend their time in the engine.
COMMON = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=default", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
ENGINE = [*COMMON, "-O3", "-ffp-contract=off"]
KERNEL = [*COMMON, "-O2", "-ffp-contract=off", "-x", "c++", "-I", "csrc/emulator"]
HOST = [*COMMON, "-O1", "-Wno-maybe-uninitialized", "-I", "csrc/emulator"]
DEFINES = ["-DFASTFLOW_DISPATCH_KEY=CPU", "-DFASTFLOW_HAS_SM80=1", "-DFASTFLOW_HAS_SM90A=1"]


def quoted(words: Sequence[str | Path]) -> str:
    return " ".join(str(word).replace("$", "$$").replace(" ", "$ ") for word in words)


def ninja_file() -> str:
    """Return the rules: sources go by their relative paths, which is what error messages show."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler was found (g++, c++)")
    packages = Path(torch.__file__).parent
    target = re.search(r'TORCH_TARGET_VERSION = "(\w+)"', (ROOT / "setup.py").read_text())
    assert target is not None
    includes: list[str | Path] = ["-isystem", packages / "include"]
    python = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    tail = "-MMD -MF $out.d -c $in -o $out"
    rules: dict[str, list[str | Path]] = {
        "engine": [compiler, *ENGINE],
        "module": [compiler, *COMMON, "-O1", *python],
        "kernel": [compiler, *KERNEL],
        "host": [compiler, *HOST, *DEFINES, f"-DTORCH_TARGET_VERSION={target.group(1)}", *includes],
    }
    lines = ["ninja_required_version = 1.3", f"builddir = {quoted([FOLDER])}"]
    for name, command in rules.items():
        lines += [f"rule {name}", f"  command = {quoted(command)} {tail}", "  depfile = $out.d", "  deps = gcc"]
    link: list[str | Path] = [
        compiler,
        "-shared",
        "-Wl,--no-as-needed",
        "-L",
        packages / "lib",
        f"-Wl,-rpath,{packages / 'lib'}",
    ]
    lines += ["rule link", f"  command = {quoted(link)} $in -ltorch -ltorch_cpu -lc10 -o $out"]
    objects = []
    for folder in ("csrc/emulator", "csrc/cuda"):
        for path in sorted((ROOT / folder).glob("*.c*")):
            rule = "kernel" if path.suffix == ".cu" else "host" if folder == "csrc/cuda" else "engine"
            rule = "module" if path.name == "module.cpp" else rule
            objects.append(FOLDER / f"{path.name}.o")
            lines.append(f"build {quoted([objects[-1]])}: {rule} {quoted([path.relative_to(ROOT)])}")
    lines.append(f"build {quoted([FOLDER / f'{NAME}.so'])}: link {quoted(objects)}")
    return "\n".join(lines) + "\n"


def build() -> Path:
    """Return the module's path, built if anything has changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rules = FOLDER / "build.ninja"
    text = ninja_file()
    if not rules.exists() or rules.read_text() != text:
        rules.write_text(text)
    beside_python = shutil.which("ninja", path=str(Path(sys.executable).parent))
    ninja = beside_python or shutil.which("ninja")
    if ninja is None:
        raise RuntimeError("ninja was not found")
    with (FOLDER / "lock").open("w") as lock:  # sessions of pytest may run beside each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([ninja, "-f", rules], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"building the emulator failed:\n{done.stdout}{done.stderr}")
    return FOLDER / f"{NAME}.so"


def load() -> ModuleType:
    """Import the module. Its operations register themselves, so `fastflow`'s schemas must be there first."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(build()))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[NAME] = module
    return module


if __name__ == "__main__":
    print(build())
