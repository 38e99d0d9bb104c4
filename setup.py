"""Builds fastflow/_cpu.so and fastflow/_cuda.so against PyTorch's stable C ABI.

Neither library contains a Py_* symbol, so one wheel serves every Python and every torch >= 2.10. They are
plain shared libraries, loaded with torch.ops.load_library, not extension modules; hence the build step here.

Environment:
    FASTFLOW_BUILD_CPU=0     leave out the cpu library (and with it the cuda library): a pure Python package
    FASTFLOW_BUILD_CUDA=0    leave out the cuda library
    FASTFLOW_BUILD_CUDA=1    fail without the cuda library, instead of warning and leaving it out
    FASTFLOW_CUDA_ARCHS      compute capabilities for the cuda library, such as "80 90a"; 90 instead of 90a
                             leaves out Hopper's own kernels (wgmma, TMA)
    CUDA_HOME, CXX, MAX_JOBS as usual
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError as error:  # what new environments of Python 3.10 and 3.11 bring along is older
    raise SystemExit("fastflow: without build isolation, first: pip install 'setuptools>=77'") from error

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest PyTorch whose ABI has all that csrc/ calls
TORCH_TARGET_FLAG = f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"
# 90a is compute capability 9.0 with the instructions that only it has. Listed with a letter, code runs nowhere else.
DEFAULT_CUDA_ARCHS = "75 80 86 89 90a 100 120"
OLDEST_CUDA_ARCH = 75  # the kernels use tanh.approx

COMMON_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# PyTorch's std::optional<Tensor> sets off a false -Wmaybe-uninitialized in GCC 12.
HOST_FLAGS = [*COMMON_FLAGS, "-Wno-maybe-uninitialized", TORCH_TARGET_FLAG]
# What lets loops over the branch-free exp, tanh and sigmoid become vector code. Neither changes a result.
KERNEL_FLAGS = [*COMMON_FLAGS, "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
# -s leaves out the symbol table: nothing is exported anyway.
LINK_FLAGS = ["-shared", "-s", "-Wl,--no-as-needed"]
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    HOST_FLAGS.append("-DFASTFLOW_X86")
    avx2 = ["-mavx2", "-mfma"]
    avx512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
    INSTRUCTION_SETS |= {"avx2": avx2, "avx512": avx2 + avx512, "avx512_bf16": [*avx2, *avx512, "-mavx512bf16"]}


class BuildError(Exception):
    """A library cannot be built; the message is a clause that says why."""


def switched_off(variable: str) -> bool:
    return os.environ.get(variable) == "0"


def insisted_on(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def warn(text: str) -> None:
    print(f"warning: fastflow is installed without {text}", file=sys.stderr)


def find_torch() -> Path | None:
    """Return torch's folder without importing it."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder and (folder / "include/torch/csrc/stable/library.h").exists() else None


def torch_prefix_map(torch: Path) -> str:
    """Return the flag that keeps this machine's folders out of the file names in PyTorch's error messages."""
    return f"-fmacro-prefix-map={torch}/include/="


def torch_includes(torch: Path) -> list[str | Path]:
    return ["-isystem", torch / "include", torch_prefix_map(torch)]


def installed_compilers() -> list[str]:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return [found for name in candidates if (found := shutil.which(name))]


@functools.cache
def compiles_cpp20(compiler: str) -> bool:
    """Try it on the smallest program that needs the flag and the standard library's headers."""
    command = [compiler, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"]
    program = "#include <string>\nint main() {}\n"
    try:
        return subprocess.run(command, input=program, capture_output=True, text=True, check=False).returncode == 0
    except OSError:
        return False


def find_compiler() -> str | None:
    return next(filter(compiles_cpp20, installed_compilers()), None)


def find_ninja() -> str | None:
    beside_python = shutil.which("ninja", path=str(Path(sys.executable).parent))
    return beside_python or shutil.which("ninja")


def find_cuda_home() -> Path | None:
    """Return the toolkit that nvcc itself belongs to: the nvcc on PATH may be a wrapper script."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if not nvcc:
        return None
    try:
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    except OSError:  # building says so later
        printed = ""
    top = re.search(r"^#\$ TOP=(.+)$", printed, re.MULTILINE)
    return Path(top.group(1).strip()).resolve() if top else Path(nvcc).resolve().parent.parent


def what_is_missing() -> str | None:
    """Return why no library can be built, or None."""
    if not sys.platform.startswith("linux"):
        return f"they are built on Linux only, and this is {sys.platform}"
    if not installed_compilers():
        return f"no C++ compiler was found ({os.environ.get('CXX') or 'c++, g++, clang++'})"
    if find_compiler() is None:
        return f"no C++ compiler that takes -std=c++20 was found (tried {', '.join(installed_compilers())})"
    if find_torch() is None:
        return "PyTorch's headers were not found (torch 2.10 or newer)"
    if find_ninja() is None:
        return "ninja was not found"
    return None


def backends() -> list[str]:
    """Return the libraries to build: "cpu", "cuda"."""
    if switched_off("FASTFLOW_BUILD_CPU") or what_is_missing():
        return []
    with_cuda = not switched_off("FASTFLOW_BUILD_CUDA") and find_cuda_home() is not None
    return ["cpu", "cuda"] if with_cuda else ["cpu"]


def max_jobs() -> int:
    """Return how many compilers may run at once: one per core, and 2 GB of free memory for each."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), free_bytes // (2 << 30)))


def arch_number(arch: str) -> int:
    return int(arch.rstrip("a"))


def cuda_archs(nvcc: Path) -> list[str]:
    """Return the architectures to build for, oldest first: those asked for, or the default ones that nvcc knows."""
    try:
        listed = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{nvcc} --list-gpu-arch failed ({error})") from error
    known = {arch for arch in re.findall(r"compute_(\d+)", listed) if int(arch) >= OLDEST_CUDA_ARCH}
    # The list leaves out those with a letter; an nvcc that takes -std=c++20 knows them from 90 on.
    known |= {f"{arch}a" for arch in known if int(arch) >= 90}
    asked = os.environ.get("FASTFLOW_CUDA_ARCHS")
    wanted = (asked or DEFAULT_CUDA_ARCHS).replace(".", "").replace(",", " ").replace(";", " ").split()
    unknown = [arch for arch in wanted if arch not in known]
    if asked and (unknown or not wanted):
        got = " ".join(unknown) or repr(asked)
        raise SystemExit(f"`FASTFLOW_CUDA_ARCHS` must name architectures from 75 on that nvcc knows; got {got}")
    archs = sorted(known.intersection(wanted), key=lambda arch: (arch_number(arch), arch))
    if not archs:
        raise BuildError(f"{nvcc} knows none of the architectures {DEFAULT_CUDA_ARCHS}")
    return archs


def archs_of(stem: str, archs: list[str]) -> list[str]:
    """Return those of `archs` that the kernels in the file of this stem are for: its name says from which on."""
    if "_sm90" in stem:
        return [arch for arch in archs if arch == "90a"]
    if "_sm80" in stem:
        return [arch for arch in archs if arch_number(arch) >= 80]
    return archs


def arch_flags(stem: str, archs: list[str]) -> list[str]:
    """Return machine code for every architecture that a file is for, and PTX of the newest for those to come.

    There is no PTX of an architecture with a letter, whose code no other runs. A file that is for none of them is
    compiled for the first, so that its functions can be linked; its kernels are empty there, and the host does not
    choose them (`instruction_sets`).
    """
    mine = archs_of(stem, archs) or archs[:1]
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in mine]
    newest = [arch for arch in mine if arch.isdigit()][-1:]
    return flags + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in newest]


def instruction_sets(archs: list[str]) -> list[str]:
    """Return what tells the host code for which instruction sets this library holds kernels."""
    kernels = {"SM80": "_sm80", "SM90A": "_sm90"}
    return [f"-DFASTFLOW_HAS_{name}={int(bool(archs_of(stem, archs)))}" for name, stem in kernels.items()]


class NinjaFile:
    """The few parts of ninja's language that two libraries need."""

    def __init__(self, folder: Path) -> None:
        self.lines = ["ninja_required_version = 1.3", f"builddir = {self.escape(folder)}"]

    @staticmethod
    def escape(path: Path | str) -> str:
        return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")

    def rule(self, name: str, command: list[str | Path], tail: str, depfile: bool) -> None:
        quoted = " ".join(shlex.quote(str(word)) for word in command).replace("$", "$$")
        self.lines += [f"rule {name}", f"  command = {quoted} {tail}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(self, output: str, rule: str, inputs: list[str], flags: str = "") -> str:
        self.lines.append(f"build {self.escape(output)}: {rule} {' '.join(map(self.escape, inputs))}")
        if flags:
            self.lines.append(f"  flags = {flags}")
        return output


class BuildNative(build_ext):
    """Builds each library with ninja. Sources go by their relative paths: no binary names a folder."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        super().run()
        if self.inplace and not any(ext.name == "fastflow._cuda" for ext in self.extensions):
            (ROOT / "fastflow/_cuda.so").unlink(missing_ok=True)  # of an earlier build, with other structs

    def build_extensions(self) -> None:
        built = [ext for ext in self.extensions if self.is_built(ext)]
        self.extensions = self.distribution.ext_modules = built  # what is copied and listed afterwards

    def is_built(self, ext: Extension) -> bool:
        """Build `ext`; a cuda library that nobody insisted on may fail."""
        try:
            self.build_extension(ext)
        except BuildError as error:
            if ext.name != "fastflow._cuda" or insisted_on("FASTFLOW_BUILD_CUDA"):
                raise SystemExit(f"fastflow: building {ext.name} failed: {error}") from error
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # of an earlier build
            warn(
                f"its CUDA library, because building it failed: {error}. Everything works, and what the library "
                "would do runs on other backends. To build it, mend what failed and install fastflow again; to make "
                "such a failure an error, set FASTFLOW_BUILD_CUDA=1; to silence this warning, FASTFLOW_BUILD_CUDA=0."
            )
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        backend = ext.name.rpartition("_")[2]
        folder = ROOT / "build" / "native" / backend  # not build_temp: that is new for every editable install
        folder.mkdir(parents=True, exist_ok=True)
        ninja = NinjaFile(folder)
        target = self.cpu_library(ninja, folder) if backend == "cpu" else self.cuda_library(ninja, folder)
        (folder / "build.ninja").write_text("\n".join(ninja.lines) + "\n")
        command = [
            find_ninja(),
            "-f",
            folder / "build.ninja",
            "-j",
            str(max_jobs()),
            *(["-v"] if self.verbose > 1 else []),
        ]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            raise BuildError("the compiler's messages are above")
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, output)

    def cpu_library(self, ninja: NinjaFile, folder: Path) -> str:
        torch, compiler = find_torch(), find_compiler()
        compile_tail = "$flags -MMD -MF $out.d -c $in -o $out"
        ninja.rule("host", [compiler, *HOST_FLAGS, *torch_includes(torch)], compile_tail, depfile=True)
        ninja.rule("kernel", [compiler, *KERNEL_FLAGS], compile_tail, depfile=True)
        ninja.rule("link", [compiler, *LINK_FLAGS, "-L", torch / "lib"], "$in -ltorch -o $out", depfile=False)
        sources = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc/cpu").glob("*.cpp"))
        objects = [ninja.build(f"{folder}/{path.stem}.o", "host", [str(path)]) for path in sources]
        for isa, flags in INSTRUCTION_SETS.items():
            flags = " ".join([f"-DFASTFLOW_ISA={isa}", *flags])
            objects.append(ninja.build(f"{folder}/kernels_{isa}.o", "kernel", ["csrc/cpu/kernels/kernels.cpp"], flags))
        return ninja.build(f"{folder}/_cpu.so", "link", objects)

    def cuda_library(self, ninja: NinjaFile, folder: Path) -> str:
        torch, compiler, home = find_torch(), find_compiler(), find_cuda_home()
        nvcc = home / "bin/nvcc"
        archs = cuda_archs(nvcc)
        hosts, devices = (sorted((ROOT / "csrc/cuda").glob(pattern)) for pattern in ("*.cpp", "*.cu"))
        compile_tail = "$flags -MMD -MF $out.d -c $in -o $out"
        # <arch/...> is hardware here, and its model where csrc/emulator takes this folder's place.
        includes = ["-I", "csrc/cuda"]
        host = [compiler, *HOST_FLAGS, "-DUSE_CUDA", *instruction_sets(archs), *includes]
        host += [*torch_includes(torch), "-isystem", home / "include"]
        ninja.rule("host", host, compile_tail, depfile=True)
        # Device code knows nothing of PyTorch. nvcc hands the host compiler's flags on. ptxas -v reports the registers
        # and spills of every kernel as part of the build's output. Architectures are compiled at once where there are
        # more cores than files.
        through = [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden")]
        device = ["-std=c++20", "-O3", "-Xptxas=-v", "-ccbin", compiler, *through, *includes]
        threads = ["--threads", str(max(1, max_jobs() // max(1, len(devices))))]
        ninja.rule("nvcc", [nvcc, *device, *threads], compile_tail, depfile=True)
        libraries = [flag for name in ("lib64", "lib") if (home / name).exists() for flag in ("-L", home / name)]
        link = [compiler, *LINK_FLAGS, "-L", torch / "lib", *libraries]
        ninja.rule("link", link, "$in -ltorch -lcudart_static -ldl -lrt -lpthread -o $out", depfile=False)
        objects = []
        for path in [*hosts, *devices]:
            flags = " ".join(arch_flags(path.stem, archs)) if path in devices else ""
            source, rule = str(path.relative_to(ROOT)), "nvcc" if path in devices else "host"
            objects.append(ninja.build(f"{folder}/{path.name}.o", rule, [source], flags))
        return ninja.build(f"{folder}/_cuda.so", "link", objects)


class BuildPython(build_py):
    def run(self) -> None:
        switched = switched_off("FASTFLOW_BUILD_CPU")
        missing = "FASTFLOW_BUILD_CPU is 0" if switched else what_is_missing()
        if insisted_on("FASTFLOW_BUILD_CUDA") and (missing or find_cuda_home() is None):
            reason = missing or "no nvcc was found"
            raise SystemExit(f"fastflow: FASTFLOW_BUILD_CUDA is 1, but the CUDA library cannot be built: {reason}")
        super().run()
        if missing and not switched:
            warn(
                f"its compiled kernels, because {missing}. Everything works, on PyTorch's own operations and "
                "therefore slower. To get the kernels, install what is missing and install fastflow again; to silence "
                "this warning, set FASTFLOW_BUILD_CPU=0."
            )


class PythonIndependentWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(f"fastflow._{backend}", sources=[]) for backend in backends()],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython, "bdist_wheel": PythonIndependentWheel},
)
