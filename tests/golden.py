"""The golden cases in tests/fixtures/golden: outputs of the published implementations, and the recipe of
their weights.

Every tensor is drawn from a seed made of the case's salt and the tensor's key, so that a checkpoint of any
size is given by the shapes of its tensors. Outputs were computed in float64 and are stored as float32.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastflow.models import WaveGlowLoss

GOLDEN = Path(__file__).parent / "fixtures" / "golden"

SALTS = {
    "waveglow_tiny": "tiny-a",
    "waveglow_256": "full-a",
    "waveglow_old": "old-c",
    "flowavenet_tiny": "fw-a",
    "flowavenet_default": "fw-full",
}
_CONFIGS = {"waveglow_256": "full"}  # where the name of the sizes is not the last part of the case's


def spec(case: str) -> dict[str, list[int]]:
    """The shape of every tensor of the published model's state dict."""
    return json.loads((GOLDEN / f"{case}.spec.json").read_text())


def make_state_dict(case: str) -> dict[str, torch.Tensor]:
    """The case's weights under the keys of the published model (`waveglow_old`: one cond_layers.i per
    layer)."""
    return {key: torch.from_numpy(_draw(key, shape, SALTS[case])) for key, shape in spec(case).items()}


def config(case: str) -> dict[str, Any]:
    """The keyword arguments of `fastflow.models.WaveGlow`, or `FloWaveNet`, for this case."""
    stem, _, name = case.partition("_")
    sizes = json.loads((GOLDEN / f"{stem}_configs.json").read_text())[_CONFIGS.get(case, name)]
    if stem == "flowavenet":
        return sizes | {"in_channel": 1}
    return sizes | {
        "hop_length": 256,
        "win_length": 1024,
        "conditioning": "sample",
        "alternate_halves": case == "waveglow_old",
    }


def load_case(case: str) -> dict[str, torch.Tensor]:
    """`mel` [B, n_mels, F], `sigma` [], `z` [B, n_group, T / n_group] (unscaled), `audio_out` [B, T]; for
    training (not `waveglow_old`) `train_audio` [B, T], `train_z`, `train_log_s_sum`, `train_log_det`
    [n_flows], `train_loss` []. FloWaveNet: `mel`, `z` [B, 1, T] (scaled), `audio_out` [B, 1, T], `train_audio`
    [B, 1, T], `train_log_p` [], `train_logdet` [] (stored in float64)."""
    with np.load(GOLDEN / f"{case}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@torch.no_grad()
def audio_error(model: Any, case: str) -> float:
    """The rms of the difference between a model's audio and the case's, relative to the rms of the case's.

    In whatever dtype the model has; house bound: 1e-4 in float32.
    """
    arrays = load_case(case)
    dtype = next(model.parameters()).dtype
    audio = model.infer(arrays["mel"].to(dtype), float(arrays["sigma"]), z=arrays["z"].to(dtype))
    expected = arrays["audio_out"].double()
    return float((audio.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def check_training_direction(model: Any, case: str, dtype: torch.dtype, bound: float) -> None:
    """Asserts that z, the log-determinants and the published loss are the case's, relative to their largest value."""
    arrays = load_case(case)
    with torch.no_grad():
        z, log_s, log_det_w = model((arrays["mel"].to(dtype), arrays["train_audio"].to(dtype)))
    results = {
        "train_z": z,
        "train_log_s_sum": torch.stack([s.sum() for s in log_s]),
        "train_log_det": torch.stack(log_det_w),
        "train_loss": WaveGlowLoss(float(arrays["sigma"]))((z, log_s, log_det_w)),
    }
    for name, got in results.items():
        expected = arrays[name].double()
        assert got.shape == expected.shape, name
        assert (got.double() - expected).abs().max() <= bound * expected.abs().max(), name


def _draw(key: str, shape: list[int], salt: str) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(f"{salt}{key}".encode()))
    values = random.standard_normal(shape)
    fan_in = int(np.prod(shape[1:]))
    if key.startswith("convinv"):
        values = _near_rotation(values[:, :, 0], random)[:, :, None]
    elif key.endswith(".bias"):
        values = 0.05 * values
    elif key.endswith(".weight_g"):
        values = 1.0 + 0.1 * np.tanh(values)
    elif key.endswith((".end.weight", ".final_conv.3.conv.weight")):
        values = 0.3 * values / np.sqrt(fan_in)
    elif key.startswith("upsample"):
        values = values / np.sqrt(fan_in * 4 / 256.0) * 0.2
    elif key.endswith(".loc"):
        values = 0.1 * values
    elif key.endswith(".actnorm.scale"):
        values = np.exp(0.1 * values)
    elif key.endswith(".scale"):
        values = 0.05 * values
    else:
        values = values / np.sqrt(fan_in)
    return values.astype(np.float32)


def _near_rotation(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A rotation whose columns are scaled by about 10 %, so that log|det W| is not zero."""
    q, r = np.linalg.qr(values)
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return q * np.exp(0.1 * random.standard_normal(len(q)))
