"""The upsampler as one matrix product is the published transposed convolution, folded."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from fastflow.models.upsample import Upsample


def published(module: nn.ConvTranspose1d, mel: Tensor, steps: int, n_group: int) -> Tensor:
    """PyTorch's convolution, then the folding: [B, channels * n_group, steps]."""
    up = module(mel)[:, :, : steps * n_group]
    return up.reshape(*up.shape[:2], steps, n_group).transpose(2, 3).flatten(1, 2)


def upsample(channels: int, win: int, hop: int, n_group: int) -> Upsample:
    torch.manual_seed(0)
    return Upsample(channels, win, hop, n_group)


def test_parameters_are_those_of_pytorch_s_module() -> None:
    module = upsample(4, 16, 8, 2)
    torch.manual_seed(0)
    plain = nn.ConvTranspose1d(4, 4, 16, stride=8)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in module.state_dict().items())
    assert torch.equal(module(torch.ones(1, 4, 3)), plain(torch.ones(1, 4, 3)))


@pytest.mark.parametrize(
    ("win", "hop", "n_group"),
    [(1024, 256, 8), (16, 8, 2), (8, 8, 2), (24, 8, 8), (20, 8, 2), (10, 8, 1), (30, 8, 4), (5, 1, 1)],
)
def test_numbers_are_those_of_the_transposed_convolution(win: int, hop: int, n_group: int) -> None:
    """Also at both ends, where a sample depends on fewer frames, and where the window is no multiple of the hop."""
    for frames in (1, 2, 5):
        module = upsample(5, win, hop, n_group)
        mel = torch.randn(2, 5, frames)
        covered = ((frames - 1) * hop + win) // n_group
        for steps in sorted({0, 1, hop // n_group, frames * hop // n_group, covered - 1, covered} - {-1}):
            got = module.grouped(mel, steps, channels_last=False)
            want = published(copy.deepcopy(module).double(), mel.double(), steps, n_group)
            assert got.shape == want.shape and got.is_contiguous()
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_no_frames_give_no_steps() -> None:
    assert upsample(4, 16, 8, 2).grouped(torch.zeros(3, 4, 0), 0, channels_last=False).shape == (3, 8, 0)


def test_gradients_are_those_of_the_transposed_convolution() -> None:
    grads = []
    for ours in (True, False):
        module = upsample(3, 20, 8, 2).double()
        mel = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = module.grouped(mel, 18, channels_last=False) if ours else published(module, mel, 18, 2)
        (out * torch.arange(out.numel(), dtype=torch.float64).reshape(out.shape).sin()).sum().backward()
        grads.append([mel.grad, module.weight.grad, module.bias.grad])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_the_weight_is_laid_out_once_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = upsample(3, 16, 8, 2), []
    pack = module._pack
    monkeypatch.setattr(module, "_pack", lambda: calls.append(1) or pack())
    mel = torch.randn(1, 3, 4)
    with torch.no_grad():
        before = module.grouped(mel, 16, channels_last=False)
        assert torch.equal(module.grouped(mel, 16, channels_last=False), before) and len(calls) == 1
        module.weight.mul_(2)
        assert not torch.equal(module.grouped(mel, 16, channels_last=False), before) and len(calls) == 2
    module.grouped(mel, 16, channels_last=False).sum().backward()
    assert module.weight.grad is not None and len(calls) == 3


def test_copies_and_pickles() -> None:
    module, mel = upsample(3, 16, 8, 2), torch.randn(1, 3, 4)
    with torch.no_grad():
        expected = module.grouped(mel, 16, channels_last=False)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
            assert torch.equal(other.grouped(mel, 16, channels_last=False), expected)


def test_under_autocast_it_computes_as_the_convolution_does() -> None:
    module, mel = upsample(3, 16, 8, 2), torch.randn(1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got, want = module.grouped(mel, 16, channels_last=False), published(module, mel, 16, 2)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_channels_beside_each_other_have_the_same_numbers() -> None:
    """What a GPU gets: laid out for its kernels once per call."""
    module, mel = upsample(3, 16, 8, 2), torch.randn(2, 3, 4)
    plain, relaid = (module.grouped(mel, 14, channels_last=last) for last in (False, True))
    assert torch.equal(relaid, plain)
    assert plain.is_contiguous() and relaid.stride()[1] == 1


def test_another_dtype_gets_a_weight_of_its_own() -> None:
    module, mel = upsample(3, 16, 8, 2), torch.randn(1, 3, 4)
    with torch.no_grad():
        before = module.grouped(mel, 16, channels_last=False)
        for dtype, atol in ((torch.float64, 1e-6), (torch.float16, 3e-3), (torch.float32, 3e-3)):
            got = module.to(dtype).grouped(mel.to(dtype), 16, channels_last=False)
            assert got.dtype == dtype
            torch.testing.assert_close(got.float(), before, rtol=0, atol=atol)
