"""Every golden case from every checkpoint form, both directions, on every backend."""

from __future__ import annotations

import pytest
import torch

import fastflow
from fastflow.ops import registry
from tests import golden

FORMS = {
    "waveglow_tiny_nvidia.pt": "waveglow_tiny",
    "waveglow_tiny_nvidia_legacy.pt": "waveglow_tiny",
    "waveglow_tiny_dle.pt": "waveglow_tiny",
    "waveglow_old_nvidia.pt": "waveglow_old",
}
BACKENDS = ["reference"] + (["cpu"] if registry.status()[1].can_run else [])


@pytest.mark.parametrize(("file", "case"), FORMS.items(), ids=FORMS)
def test_float64_reference(file: str, case: str) -> None:
    model = fastflow.load(golden.GOLDEN / file, dtype=torch.float64)
    arrays = golden.load_case(case)
    with fastflow.use_backend("reference"):
        audio = model.infer(arrays["mel"].double(), float(arrays["sigma"]), z=arrays["z"].double())
        expected = arrays["audio_out"].double()
        assert (audio - expected).abs().max() <= 1e-6 * expected.abs().max()
        if case != "waveglow_old":  # whose published code has no training direction
            golden.check_training_direction(model, case, torch.float64, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("file", "case"), FORMS.items(), ids=FORMS)
def test_float32(file: str, case: str, backend: str) -> None:
    model = fastflow.load(golden.GOLDEN / file)
    with fastflow.use_backend(backend):
        assert golden.audio_error(model, case) <= 1e-4
        if case != "waveglow_old":
            golden.check_training_direction(model, case, torch.float32, 1e-4)
