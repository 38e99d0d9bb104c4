from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastflow.audio import write_audio
from fastflow.models import WaveGlow
from fastflow.train import SegmentDataset
from fastflow.train.start import start_from_data

from .conftest import tone

WN = {"n_layers": 2, "n_channels": 8, "kernel_size": 3}
CONFIGS = [
    {"n_group": 16, "n_early_size": 0, "conditioning": "group"},
    {"n_group": 8, "n_early_size": 2, "conditioning": "sample"},
]


@pytest.fixture(params=CONFIGS, ids=lambda c: c["conditioning"])
def model(request: pytest.FixtureRequest, dataset: SegmentDataset) -> WaveGlow:
    torch.manual_seed(0)
    model = WaveGlow(80, 4, n_early_every=2, WN_config=WN, **request.param)
    start_from_data(model, dataset)
    return model


def test_every_channel_of_z_starts_with_about_unit_variance(model: WaveGlow, dataset: SegmentDataset) -> None:
    with torch.no_grad():  # `end` is zero: z is the audio after the 1x1 weights
        z, _, _ = model(dataset.batch(0, 64))
    std = z.std((0, 2))
    assert std.min() > 0.5
    assert std.max() < 2


def test_conditioning_starts_centred_and_with_unit_variance(model: WaveGlow, dataset: SegmentDataset) -> None:
    mel, _ = dataset.batch(0, 64)
    up = model.upsample(mel)[:, :, : mel.shape[2] * model.upsample.stride[0]].detach()
    assert up.mean((0, 2)).abs().max() < 0.5
    assert 0.5 < up.std() < 2


def test_the_start_is_where_the_couplings_find_channels_in_turn(model: WaveGlow) -> None:
    """The first weight is a scaled rotation; each of the others exchanges the halves; all determinants are positive."""
    first, *others = (convinv.conv.weight[:, :, 0].detach() for convinv in model.convinv)
    rows = first / first.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    for weight in others:
        half = len(weight) // 2
        assert torch.equal(weight.abs(), torch.eye(len(weight)).roll(half, 0))
    assert all(torch.linalg.det(c.conv.weight[:, :, 0].double()) > 0 for c in model.convinv)


def test_deviation_is_that_of_the_projections(speech: Path) -> None:
    data = SegmentDataset([speech / "low.flac"], segment=2048)
    audio = data.first(1.0)
    stretches = audio[: len(audio) // 4 * 4].reshape(-1, 4)
    torch.testing.assert_close(data.deviation(torch.eye(4)), stretches.square().mean(0).sqrt())
    assert data.deviation(torch.zeros(1, 4)) == 1e-4


def test_dither_is_of_the_given_size_and_repeats(tmp_path: Path) -> None:
    write_audio(tmp_path / "silence.wav", torch.zeros(22050), 22050)
    write_audio(tmp_path / "tone.wav", tone(1.0, 150.0), 22050)
    data = SegmentDataset([tmp_path / "silence.wav"], segment=4096, dither=1e-3)
    _, audio = data.batch(5, 8)
    assert audio.std() == pytest.approx(1e-3, rel=0.05)
    assert torch.equal(audio, data.batch(5, 8)[1])
    with pytest.raises(ValueError, match=r"`dither` must be at least 0 and less than 1; got -1"):
        SegmentDataset([tmp_path], dither=-1)
