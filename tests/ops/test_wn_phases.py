"""`wn` with conditioning weights for each phase of a frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow import BackendError, ops, use_backend
from fastflow.ops import registry


def stack(
    phases: int, frames: int, dtype: torch.dtype, *, layers: int = 2, bias_per_phase: bool = True
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `wn`: 5 channels, 4 of the gate, 3 skips, 6 of the conditioning, 2 items."""

    def r(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, dtype=dtype)

    args = (
        r(2, 5, phases * frames),
        [r(8, 5, 3) for _ in range(layers)],
        [r(8) for _ in range(layers)],
        [r(8 if i < layers - 1 else 3, 4) for i in range(layers)],
        [r(8 if i < layers - 1 else 3) for i in range(layers)],
        r(2, 6, frames),
        [r(phases, 8, 6) for _ in range(layers)],
        [r(phases, 8) if bias_per_phase else r(8) for _ in range(layers)],
    )
    return args, {"dilations": [2**i for i in range(layers)]}


@pytest.mark.parametrize("bias_per_phase", [True, False])
@pytest.mark.parametrize(("phases", "frames"), [(1, 5), (2, 1), (3, 7), (4, 0)])
def test_a_step_takes_its_frame_through_the_weight_of_its_phase(phases: int, frames: int, bias_per_phase: bool) -> None:
    args, options = stack(phases, frames, torch.float64, bias_per_phase=bias_per_phase)
    cond, weights, biases = args[5:8]
    projected = torch.zeros(2, 16, phases * frames, dtype=torch.float64)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        for t in range(phases * frames):
            own = bias[t % phases] if bias_per_phase else bias
            projected[:, 8 * i : 8 * i + 8, t] = cond[:, :, t // phases] @ weight[t % phases].t() + own
    with use_backend("reference"):
        torch.testing.assert_close(ops.wn(*args, **options), ops.wn(*args[:5], projected, **options))


def test_backends_without_them_refuse_and_auto_takes_another() -> None:
    args, options = stack(2, 3, torch.float32)
    expected = ops.wn(*args, **options)
    for backend in registry.BACKENDS:
        if registry._unavailable(backend) is not None or (backend, "wn") in registry._WITH_PHASES:
            continue
        with use_backend(backend), pytest.raises(BackendError, match=r"takes no conditioning weights per phase"):
            ops.wn(*args, **options)
    with use_backend("reference"):
        torch.testing.assert_close(expected, ops.wn(*args, **options))
