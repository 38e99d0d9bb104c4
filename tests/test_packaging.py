"""What is packed: exported symbols, versions, wheel tags, and the build that has no compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

import fastflow
from fastflow import _native

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastflow.__file__).parent
LIBRARIES = [path for name in ("_cpu.so", "_cuda.so") if (path := PACKAGE / name).exists()]

OLDEST_TORCH = "2.10"  # test_target_version_is_the_oldest_supported_torch holds the sources to it

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests run outside the source tree")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def copy_sources(target: Path) -> Path:
    """Copy what an sdist holds into `target`, without anything that was built."""
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, target)
    for name in ("csrc", "fastflow"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def build_wheel(project: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """Build a wheel without isolation; return it and everything the build printed."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(project / "dist"),
        str(project),
    ]
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    (wheel,) = (project / "dist").glob("*.whl")
    return wheel, result.stdout


@needs_nm
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_symbols(library: Path) -> None:
    """Only the C library, libstdc++ and PyTorch's stable C shims: nothing of Python, at:: or c10::."""
    lines = subprocess.check_output(["nm", "-D", "--undefined-only", str(library)], text=True).splitlines()
    symbols = {line.split()[-1].split("@")[0] for line in lines}
    torch_symbols = {name for name in symbols if re.match(r"(aoti_)?torch_", name)}
    assert "torch_library_impl" in torch_symbols
    assert not [name for name in symbols if name.startswith(("Py", "_Py"))]
    mangled = {name for name in symbols if re.match(r"_Z", name)}
    demangled = subprocess.run(["c++filt", "-r"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    assert not re.findall(r"\b(?:at|c10|torch|caffe2)::.*", demangled.stdout)
    defined = subprocess.check_output(["nm", "-D", "--defined-only", str(library)], text=True)
    assert "fastflow" not in defined, "kernels must not be exported: two libraries in one process would share them"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_audit(library: Path) -> None:
    """Every function that is called of PyTorch is in its stable ABI since the oldest version that is supported."""
    audit = pytest.importorskip("torch_abi_audit", reason="torch-abi-audit is not installed: it takes Python 3.11")
    verdict = audit.inspect_extension(library).torch
    assert verdict.stable and not verdict.unstable_symbols
    assert not verdict.unknown_shim_symbols
    oldest = tuple(map(int, OLDEST_TORCH.split(".")))
    assert tuple(map(int, verdict.min_torch_version.split(".")))[:2] <= oldest, verdict.version_defining_symbols


@needs_nm
@pytest.mark.skipif(not (PACKAGE / "_cuda.so").exists(), reason="fastflow/_cuda.so is not built")
def test_the_cuda_library_takes_no_driver() -> None:
    """It loads on a machine without one: what it calls of the driver is asked for at run time."""
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", str(PACKAGE / "_cuda.so")], text=True)
    assert not re.findall(r"\bcu[A-Z]\w*", undefined)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_it_loads_into_this_pytorch(library: Path) -> None:
    """`make oldest` runs this in the oldest PyTorch that is supported, with the libraries as they are."""
    reason = _native.status()[library.stem.removeprefix("_")]
    if library.name == "_cuda.so" and torch.version.cuda is None:
        assert reason is not None and "this PyTorch is built without CUDA" in reason
    else:
        assert reason is None


@needs_nm
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_dependencies(library: Path) -> None:
    """libtorch is named, so that its symbols are found; the CUDA runtime is inside, and the driver is not needed."""
    dynamic = subprocess.check_output(["readelf", "-d", str(library)], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libtorch.so" in needed
    assert not [name for name in needed if name.startswith(("libcuda", "libpython", "libc10", "libtorch_python"))]
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_no_build_paths(library: Path) -> None:
    """Neither of the sources nor of PyTorch's headers."""
    contents = library.read_bytes()
    assert str(ROOT).encode() not in contents
    assert b"site-packages" not in contents


def test_loading_never_raises(tmp_path: Path) -> None:
    """A missing and a broken library are both reasons, not errors."""
    broken = tmp_path / "_cpu.so"
    broken.write_bytes(b"not a library")
    assert "fastflow/_cpu.so cannot be loaded: " in str(_native._load(broken, ""))
    assert _native._load(tmp_path / "_none.so", "because") == "fastflow/_none.so is not built (because)"


def test_status_names_both_libraries() -> None:
    status = _native.status()
    assert list(status) == ["cpu", "cuda"]
    for name, reason in status.items():
        built = (PACKAGE / f"_{name}.so").exists()
        assert reason is None or (f"fastflow/_{name}.so" in reason)
        assert built or reason is not None


def test_version_is_the_same_everywhere() -> None:
    try:
        installed = version("fastflow")
    except PackageNotFoundError:
        pytest.skip("fastflow runs from its source folder")
    assert installed == fastflow.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", installed)


@needs_sources
def test_wheel(tmp_path: Path) -> None:
    """One wheel for every Python: py3-none-<platform>, with the library, the assets and the typing marker."""
    if not (PACKAGE / "_cpu.so").exists():
        pytest.skip("installed without compiled kernels")
    project = copy_sources(tmp_path / "project")
    (project / "fastflow/_cuda.so").write_bytes(b"left over from another build")
    wheel, _ = build_wheel(project, {**os.environ, "FASTFLOW_BUILD_CUDA": "0"})
    assert re.fullmatch(rf"fastflow-{fastflow.__version__}-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.read("fastflow/_cpu.so")
    assert "fastflow/_cuda.so" not in names
    assert "fastflow/py.typed" in names
    assets = {f"fastflow/assets/{path.name}" for path in (ROOT / "fastflow/assets").iterdir()}
    assert assets <= set(names)
    tables = {f"fastflow/ops/tuned/{path.name}" for path in (ROOT / "fastflow/ops/tuned").glob("*.json")}
    assert tables and tables <= set(names)
    assert not [name for name in names if name.startswith(("csrc/", "tests/", "build/"))]
    assert str(tmp_path).encode() not in library


@needs_sources
def test_sdist(tmp_path: Path) -> None:
    """Everything to build and to test is in it, the kernels, their model on the CPU and the Makefile among it."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    for name in files:
        (to := tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", str(tmp_path / "project")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    with tarfile.open(tmp_path / f"project/dist/fastflow-{fastflow.__version__}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    # what is left out is for working on the project, not with it
    assert {name for name in files if name not in packed} <= {
        ".ci/run",
        ".gitignore",
        ".pre-commit-config.yaml",
        "CONTRIBUTING.md",
    }
    assert not [name for name in packed if name.endswith(".so")]


@needs_sources
@pytest.mark.parametrize("lacking", ["compiler", "switched off"])
def test_pure_python_fallback(tmp_path: Path, lacking: str) -> None:
    """Without a compiler the build succeeds, says so in one plain paragraph, and the wheel is pure Python."""
    project = copy_sources(tmp_path / "project")
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CUDA_HOME")}
    if lacking == "compiler":
        environment["PATH"] = str(tmp_path)  # an empty folder
    else:
        environment["FASTFLOW_BUILD_CPU"] = "0"
    wheel, output = build_wheel(project, environment)
    assert wheel.name == f"fastflow-{fastflow.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    warnings = [line for line in output.splitlines() if line.startswith("warning: fastflow is installed without")]
    if lacking == "compiler":
        assert len(warnings) == 1 and "no C++ compiler was found (c++, g++, clang++)" in warnings[0]
    else:
        assert not warnings


@pytest.fixture
def setup_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py's functions, for a source tree with nothing but one CUDA source in it."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("CXX", "FASTFLOW_BUILD_CPU", "FASTFLOW_BUILD_CUDA", "FASTFLOW_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("fastflow_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/gate.cu").write_text("")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


BROKEN_NVCC = {
    "fails": ("exit 1", "--list-gpu-arch failed"),
    "knows no default architecture": ("echo compute_50", "knows none of the architectures 75 80"),
    "cannot compile": ('[ "$1" = --list-gpu-arch ] && echo compute_90', "the compiler's messages are above"),
}


@needs_sources
@pytest.mark.parametrize("insist", [False, True])
@pytest.mark.parametrize("nvcc", BROKEN_NVCC)
def test_a_failed_cuda_build_is_left_out_with_a_warning(
    setup_py: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nvcc: str,
    insist: bool,
) -> None:
    """Unless it was asked for: then it is an error."""
    if setup_py.what_is_missing():
        pytest.skip(setup_py.what_is_missing())
    script, reason = BROKEN_NVCC[nvcc]
    program(tmp_path / "cuda/bin/nvcc", script)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert setup_py.backends() == ["cpu", "cuda"]
    command = setup_py.BuildNative(
        setuptools.Distribution({"ext_modules": [setuptools.Extension("fastflow._cuda", [])]})
    )
    command.build_lib = str(tmp_path / "lib")
    command.ensure_finalized()
    stale = tmp_path / "lib/fastflow/_cuda.so"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    if insist:
        monkeypatch.setenv("FASTFLOW_BUILD_CUDA", "1")
        with pytest.raises(SystemExit, match=rf"building fastflow\._cuda failed: .*{reason}"):
            command.run()
        return
    command.run()
    assert not stale.exists() and not command.get_outputs()
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "installed without its CUDA library" in warning and reason in warning and "FASTFLOW_BUILD_CUDA=1" in warning


@needs_sources
def test_cuda_that_was_asked_for_takes_an_nvcc(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTFLOW_BUILD_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    command = setup_py.BuildPython(setuptools.Distribution())
    command.ensure_finalized()
    reason = setup_py.what_is_missing() or "no nvcc was found"
    with pytest.raises(SystemExit, match=rf"FASTFLOW_BUILD_CUDA is 1, but .*: {re.escape(reason)}"):
        command.run()


@needs_sources
def test_architectures_that_were_asked_for_must_be_some(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = program(tmp_path / "nvcc", "echo compute_90")
    for asked, got in (("90 999", "999"), (" ", "' '"), ("80a", "80a"), ("90b", "90b")):
        monkeypatch.setenv("FASTFLOW_CUDA_ARCHS", asked)
        with pytest.raises(SystemExit, match=rf"`FASTFLOW_CUDA_ARCHS` must name .*; got {got}$"):
            setup_py.cuda_archs(nvcc)


KNOWN = "75 80 86 87 89 90 100 120 121"
ARCHITECTURES = {  # asked for, known to nvcc: what is built
    "all": (None, KNOWN, "75 80 86 89 90a 100 120"),
    "older nvcc": (None, "75 80 90", "75 80 90a"),
    "in any order": ("120,8.0;9.0a", KNOWN, "80 90a 120"),
    "Hopper": ("90a", KNOWN, "90a"),
    "without wgmma": ("9.0", KNOWN, "90"),
    "both": ("90a 90", KNOWN, "90 90a"),
}


@needs_sources
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked, known, built = ARCHITECTURES[name]
    nvcc = program(tmp_path / "nvcc", "\n".join(f"echo compute_{arch}" for arch in known.split()))
    if asked is not None:
        monkeypatch.setenv("FASTFLOW_CUDA_ARCHS", asked)
    assert setup_py.cuda_archs(nvcc) == built.split()


@needs_sources
def test_each_file_is_compiled_for_the_architectures_that_it_is_for(setup_py: ModuleType) -> None:
    """And PTX, for GPUs to come, is of the newest architecture without a letter."""

    def compiled(stem: str, archs: str) -> str:
        flags = setup_py.arch_flags(stem, archs.split())
        return " ".join(re.fullmatch(r"-gencode=arch=compute_\w+,code=(\w+)", flag).group(1) for flag in flags)

    everything = "75 80 90a 120"
    assert compiled("gate", everything) == "sm_75 sm_80 sm_90a sm_120 compute_120"
    assert compiled("wn_sm80", everything) == "sm_80 sm_90a sm_120 compute_120"
    assert compiled("wn_sm90", everything) == "sm_90a"
    assert compiled("wn_backward_sm80", "80 90a") == "sm_80 sm_90a compute_80"
    assert compiled("gate", "90a") == "sm_90a"
    # for none of these: empty kernels, so that the functions around them are there
    assert compiled("wn_sm90", "80 90") == "sm_80 compute_80"
    assert compiled("wn_sm80", "75") == "sm_75 compute_75"


@needs_sources
def test_host_code_is_told_which_kernels_the_library_has(setup_py: ModuleType) -> None:
    for archs, sm80, sm90a in (("75", 0, 0), ("75 86", 1, 0), ("80 90", 1, 0), ("90a", 1, 1)):
        expected = [f"-DFASTFLOW_HAS_SM80={sm80}", f"-DFASTFLOW_HAS_SM90A={sm90a}"]
        assert setup_py.instruction_sets(archs.split()) == expected


@needs_sources
@pytest.mark.skipif(sys.platform != "linux", reason="libraries are built on Linux only")
def test_an_old_compiler_counts_as_missing(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once."""
    calls = tmp_path / "calls"
    old = program(tmp_path / "bin/c++", f'echo "$@" >> {calls}; case "$*" in *c++20*) exit 1;; esac')
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CXX", "c++")
    for _ in range(2):
        assert setup_py.what_is_missing() == f"no C++ compiler that takes -std=c++20 was found (tried {old})"
        assert setup_py.backends() == []
    assert len(calls.read_text().splitlines()) == 1


@needs_sources
def test_target_version_is_the_oldest_supported_torch() -> None:
    """setup.py compiles for the ABI of the oldest PyTorch that pyproject.toml lets in."""
    target = int(re.findall(r'TORCH_TARGET_VERSION = "(0x\w+)"', (ROOT / "setup.py").read_text())[0], 16)
    oldest = re.findall(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert set(oldest) == {(str(target >> 56), str(target >> 48 & 0xFF))} == {tuple(OLDEST_TORCH.split("."))}
    assert f"torch=={OLDEST_TORCH}.0" in (ROOT / "Makefile").read_text()


def test_typing_marker_is_installed() -> None:
    spec = importlib.util.find_spec("fastflow")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").exists()
