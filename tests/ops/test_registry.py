from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastflow import BackendError, ops, use_backend
from fastflow.ops import registry


def test_unknown_backend_is_named_with_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match="`name` must be one of reference, cpu, triton, cuda, auto; got 'gpu'"),
        use_backend("gpu"),
    ):
        pass


def test_backend_that_cannot_run_says_why() -> None:
    with (
        pytest.raises(BackendError, match="backend 'triton' cannot run: this version has no Triton kernels"),
        use_backend("triton"),
    ):
        pass


def test_missing_library_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._native, "status", lambda: {"cpu": "no compiler", "cuda": "no nvcc"})
    with pytest.raises(BackendError, match="backend 'cpu' cannot run: no compiler"), use_backend("cpu"):
        pass
    assert ops.gate(torch.zeros(1, 2, 3)).shape == (1, 1, 3), "auto falls back to the reference"
    assert {s.backend: s.reason for s in registry.status()}["cpu"] == "no compiler"


def test_backend_refuses_a_dtype_it_has_no_kernel_for() -> None:
    if not registry.status()[1].can_run:
        pytest.skip(registry.status()[1].reason)
    x = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    with use_backend("cpu"), pytest.raises(BackendError, match=r"float32 and float64; got torch\.bfloat16"):
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


def test_auto_keeps_float64_and_half_with_the_reference() -> None:
    """The C++ kernels are measured faster in float32 only."""
    for dtype in (torch.float64, torch.bfloat16):
        assert registry._resolve("wn", torch.zeros(1, dtype=dtype)) is registry._implementations["reference"]["wn"]


def test_the_programs_default_device_and_dtype_take_no_backend_away() -> None:
    """The package may be imported first where a program has already set them."""
    program = (
        "import torch\ntorch.set_default_device('meta')\ntorch.set_default_dtype(torch.bfloat16)\n"
        "from fastflow.ops import registry\nprint([s.can_run for s in registry.status()])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str([s.can_run for s in registry.status()])
