"""What a measurement leaves: a row for each variant of a case, with all that its figures depend on."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fastflow._version import __version__

SAMPLING_RATE = 22_050  # of all models in the registry


@dataclass
class Row:
    """One variant of one case. What was not measured is None, or 0 where a figure cannot be 0."""

    part: str
    case: str
    op: str
    dtype: str
    variant: str
    error: float | None = None  # rms of the error / rms of the reference, the worst output's
    bound: float | None = None
    refused: str = ""  # why there is no time
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    min_ms: float | None = None
    cpu_ms: float | None = None  # the least processor time of all threads
    warm_ms: float | None = None  # median on the same inputs again and again
    first_ms: float | None = None  # the first call, with all that is made once
    cache: str = ""  # "cold" where the inputs that take turns fill the last cache between two uses, else "warm"
    rounds: int = 0
    limit_ms: float | None = None
    flops: float = 0.0  # that the published formula takes
    bytes: float = 0.0  # that any implementation moves at least
    samples: int = 0  # of audio
    rate: float = 0.0  # of matrix products in this dtype in the same run, FLOP/s
    copy: float = 0.0  # of a copy in the same run, bytes/s, those read plus those written
    peak_mb: float = 0.0  # resident memory of the variant's process at most while it runs
    extra_mb: float = 0.0  # what a run takes at most on top of what the process held before it
    kept_mb: float = 0.0  # of a training step: what autograd holds after the forward
    flows: int = 0  # of the model, where that is what changes
    threads: int = 0
    load: float = 0.0  # the system's load average at the end
    about: dict[str, str] = field(default_factory=dict)

    def key(self) -> tuple[str, ...]:
        return self.part, self.case, self.op, self.dtype, self.variant

    def set_times(self, times: Sequence[float]) -> None:
        """Keep the quantiles of these milliseconds."""
        quantiles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else [times[0]] * 9
        self.median_ms, self.p20_ms, self.p80_ms = statistics.median(times), quantiles[1], quantiles[7]
        self.min_ms, self.rounds = min(times), len(times)

    @property
    def fraction(self) -> float:
        """The published formula's arithmetic over the time, as a fraction of the rate of matrix products."""
        return self.flops / self.median_ms * 1e3 / self.rate if self.rate and self.median_ms else 0.0

    @property
    def fraction_of_copy(self) -> float:
        """The least traffic over the time, as a fraction of the rate of a copy."""
        return self.bytes / self.median_ms * 1e3 / self.copy if self.copy and self.median_ms else 0.0

    @property
    def fraction_of_limit(self) -> float:
        """The least time that arithmetic and traffic take at the rates of this machine, as a fraction of the time."""
        if self.limit_ms and self.median_ms:
            return self.limit_ms / self.median_ms
        return max(self.fraction, self.fraction_of_copy)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.median_ms * 1e3 if self.median_ms else 0.0

    @property
    def times_real_time(self) -> float:
        return self.samples_per_second / SAMPLING_RATE


_FIELDS = {f.name for f in fields(Row)}


def read(path: Path) -> list[Row]:
    """Return a file's rows; what other programs add to theirs is left out."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [Row(**{name: value for name, value in row.items() if name in _FIELDS}) for row in stored]


def store(rows: Iterable[Row], folder: Path) -> None:
    """Add rows to those of earlier runs in `folder`, a file for each part; a newer one replaces an older."""
    folder.mkdir(parents=True, exist_ok=True)
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row.part, []).append(row)
    for part, new in by_part.items():
        path = folder / f"{part}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        kept: dict[tuple[Any, ...], dict[str, Any]] = {_identity(row): row for row in before}
        kept |= {_identity(row): row for row in map(asdict, new)}
        path.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return *(row[name] for name in ("part", "case", "op", "dtype", "variant")), row.get("threads", 0)


# The machine


def processor() -> str:
    """Return the CPU's name."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        for name in re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE):
            return str(name)
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> str:
    """Name the folder of this machine's results."""
    if device.type == "cpu":
        text = f"cpu {processor()} {torch.backends.cpu.get_cpu_capability()}"
        return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
    from fastflow.ops import tuning  # it needs Triton, which CPU builds of PyTorch do without

    return tuning.target_of(device).model


def about(device: torch.device, commit: str) -> dict[str, str]:
    """What a row's figures depend on."""
    facts = {
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fastflow": __version__,
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": str(os.cpu_count()),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda or torch.version.hip)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            query = ["nvidia-smi", f"--id={device.index or 0}", "--format=csv,noheader"]
            query.append("--query-gpu=driver_version,clocks.max.sm,power.limit")
            facts["driver, clock, power"] = subprocess.check_output(query, text=True).strip()
    return facts


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """Return what git says of the checkout that this package lies in, or "unknown"."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = checkout()
        return subprocess.check_output(command, cwd=folder, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def checkout() -> Path:
    """Return the checkout that this package lies in.

    Raises:
        OSError: an installed copy, or no git.
    """
    folder = Path(__file__).parents[2]
    if not (folder / "setup.py").exists():  # an environment may lie within another project's checkout
        raise OSError(f"{folder} is not a checkout of fastflow")
    return folder
