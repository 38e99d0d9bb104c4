from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from fastflow import BackendError, _triton, ops, use_backend
from fastflow.ops import registry


def test_unknown_backend_is_named_with_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match="`name` must be one of reference, cpu, triton, cuda, auto; got 'gpu'"),
        use_backend("gpu"),
    ):
        pass


def test_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="backend 'triton' cannot run: no GPU is available"), use_backend("triton"):
        pass


def test_every_operation_and_backward_has_triton_kernels() -> None:
    assert registry.status()[2].can_run, "the test extra installs Triton; without a GPU the kernels are interpreted"
    for op in (*registry.SCHEMAS, *registry.BACKWARD_SCHEMAS):
        assert registry.implements("triton", op), op


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, "the package `triton` is not installed"), ("3.5.1", "it needs triton 3.6 or newer; found 3.5.1")],
)
def test_triton_missing_or_too_old(version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> Any:
        if version is None:
            raise ModuleNotFoundError(name)
        return SimpleNamespace(__version__=version)

    monkeypatch.setattr(importlib, "import_module", imported)
    monkeypatch.setattr(_triton, "_unusable", _triton._unusable.__wrapped__)
    with pytest.raises(BackendError, match=reason), use_backend("triton"):
        pass


class OnGpu(NamedTuple):
    """What the choice of a backend reads of a tensor on a GPU that is not there."""

    shape: tuple[int, ...] = (1, 8, 16)
    dtype: torch.dtype = torch.float16
    device: torch.device = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU of compute capability 9.0, and no compiled library for it."""
    registry._load_triton()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(registry._native, "status", lambda: {"cpu": None, "cuda": "no nvcc"})


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_auto_takes_triton_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in (*registry.SCHEMAS, *registry.BACKWARD_SCHEMAS):
        assert registry._auto(op, OnGpu()) == "triton", op
    for x in (OnGpu(dtype=torch.float64), OnGpu(shape=(1, 64, 16))):
        assert registry._auto("flow_step", x) == "reference"
    assert registry._resolve_backward("wn_backward", OnGpu()) is registry._implementations["triton"]["wn_backward"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert registry._auto("wn", OnGpu()) == "reference"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (OnGpu(device=torch.device("cpu")), "cannot run `wn`: the tensors are on cpu"),
        (OnGpu(shape=(65536, 8, 1)), "its grids take at most 65535 items; got a batch of 65536"),
        (OnGpu(dtype=torch.float64), "its kernels take float32, float16 and bfloat16; got torch.float64"),
    ],
)
def test_triton_refuses_what_it_cannot_take(x: Any, reason: str) -> None:
    with use_backend("triton"), pytest.raises(BackendError, match=reason):
        registry._resolve("wn", x)


def test_missing_library_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._native, "status", lambda: {"cpu": "no compiler", "cuda": "no nvcc"})
    with pytest.raises(BackendError, match="backend 'cpu' cannot run: no compiler"), use_backend("cpu"):
        pass
    assert ops.gate(torch.zeros(1, 2, 3)).shape == (1, 1, 3), "auto falls back to the reference"
    assert {s.backend: s.reason for s in registry.status()}["cpu"] == "no compiler"


def test_a_library_without_code_for_the_device_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def gate(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cudaLaunchKernelExC: no kernel image is available for execution on the device\ntrace")

    monkeypatch.setitem(registry._implementations["cuda"], "gate", gate)
    monkeypatch.setattr(registry, "_emulated", True)
    registry._refusal.cache_clear()
    try:
        reason = registry._unsupported("cuda", "gate", torch.zeros(1, 2, 1))
        assert reason == "cudaLaunchKernelExC: no kernel image is available for execution on the device"
    finally:
        registry._refusal.cache_clear()


def test_backend_refuses_a_dtype_it_has_no_kernel_for() -> None:
    if not registry.status()[1].can_run:
        pytest.skip(registry.status()[1].reason)
    x = torch.zeros(1, 2, 3, dtype=torch.float16)
    with use_backend("cpu"), pytest.raises(BackendError, match=r"float32, float64 and bfloat16; got torch\.float16"):
        ops.gate(x)


def test_choice_ends_with_the_block_also_on_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert registry._requested == "auto"


def test_blocks_nest() -> None:
    with use_backend("reference"):
        with use_backend("auto"):
            assert registry._requested == "auto"
        assert registry._requested == "reference"


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_chosen", set())
    with caplog.at_level("INFO", logger="fastflow"):
        for _ in range(3):
            ops.gate(torch.zeros(1, 2, 3))
    assert len([r for r in caplog.records if "`gate` on cpu runs on backend" in r.getMessage()]) == 1


def test_auto_keeps_with_the_reference_what_was_not_measured_faster() -> None:
    """float64, float16 and, but for AVX2, the gated stack in bfloat16; gradients in bfloat16."""
    for dtype in (torch.float64, torch.float16):
        assert registry._auto("wn", torch.zeros(1, dtype=dtype)) == "reference"
    assert registry._auto("wn_backward", torch.zeros(1, dtype=torch.bfloat16)) == "reference"
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        assert registry._auto("wn", torch.zeros(1, dtype=torch.bfloat16)) == "reference"


def test_the_programs_default_device_and_dtype_take_no_backend_away() -> None:
    """The package may be imported first where a program has already set them."""
    program = (
        "import torch\ntorch.set_default_device('meta')\ntorch.set_default_dtype(torch.bfloat16)\n"
        "from fastflow.ops import registry\nprint([s.can_run for s in registry.status()])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str([s.can_run for s in registry.status()])
