"""The models of the packages themselves, shrunk: `make stacks` installs the packages and runs these."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import stacks
from benchmarks.stacks import Case, made
from fastflow.stacks import Report, accelerate
from fastflow.stacks.block import Block
from fastflow.stacks.gated import GatedBlock
from tests.stacks.checks import run, tensors

pytestmark = pytest.mark.packages

RMS = 1e-4
"""Of a whole model in float32: rms of the error over rms of the reference."""


def near(got: list[Tensor], expected: list[Tensor], bound: float = RMS) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a.double() - b.double()).norm() <= bound * b.double().norm()


def is_as_the_original(
    case: Case, replaced: int, left: int = 0, *, train: Callable[[nn.Module], Any] | None = None
) -> Report:
    """Outputs in evaluation, and in training by `train`, the state, and the way back, bit for bit.

    Gradients are compared in float64: decoders are full of kinks, at which float32's rounding is another gradient. The
    tests of each stack's blocks compare them in float32.
    """
    model = case.model
    calls = [(False, case.call), (True, train or case.call)]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    parameters, classes = list(model.parameters()), [type(part) for part in model.modules()]

    def results() -> list[list[Tensor]]:
        model.load_state_dict(state)  # batch normalisation has counted in training
        found = []
        for mode, call in calls:
            model.train(mode)
            with torch.no_grad():
                found += [tensors(call(model)) for _ in range(2)]  # packed, then from the cache
        model.eval()
        return found

    before = results()
    report = accelerate(model, strict=True)
    assert (len(report.replaced), len(report.left)) == (replaced, left), str(report)
    for got, expected in zip(results(), before, strict=True):
        near(got, expected)
    model.load_state_dict(state)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], t) for name, t in state.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    report.revert()
    assert [type(part) for part in model.modules()] == classes
    for got, expected in zip(results(), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    if train is not None:
        model.train().double()
        torch.set_default_dtype(torch.float64)
        try:
            known = run(model, lambda: train(model), [])
            accelerate(model, strict=True)
            with mock.patch.object(GatedBlock, "_worth_it", return_value=True):  # on a CPU the original would run
                found = run(model, lambda: train(model), [])
        finally:
            torch.set_default_dtype(torch.float32)
        near(found[0], known[0], 1e-8)
        largest = max(g.norm() for g in known[1])
        for ours, theirs in zip(found[1], known[1], strict=True):
            assert (ours - theirs).norm() <= 1e-8 * largest
        learns = {name for (name, _), g in zip(model.named_parameters(), found[1], strict=True) if g.any()}
        # all but the posterior encoder, where synthesis is trained
        assert all(any(name.startswith(f"{e.path}.") for name in learns) for e in report if "posterior" not in e.path)
    return report


def test_transformers_vits() -> None:
    """Two couplings with their stacks, and the posterior encoder's, which only training runs: called on its own."""
    case = made(stacks.transformers_vits, True)

    def train(model: Any) -> Any:
        spectrogram, mask = torch.randn(2, 9, 13), torch.ones(2, 1, 13)
        mask[1, :, 9:] = 0
        z, mean, log_std = model.posterior_encoder(spectrogram, mask)
        return z, mean, log_std, model.flow(z, mask), model(torch.ones(1, 6, dtype=torch.long)).waveform

    report = is_as_the_original(case, 5, train=stacks._seeded(train))
    assert {e.stack for e in report} == {"transformers VITS"}


def test_transformers_vits_with_speakers() -> None:
    from transformers import VitsConfig, VitsModel

    torch.manual_seed(0)
    config = VitsConfig(
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        flow_size=8,
        prior_encoder_num_flows=1,
        spectrogram_bins=9,
        upsample_initial_channel=32,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        num_speakers=3,
        speaker_embedding_size=5,
        posterior_encoder_num_wavenet_layers=2,
    )
    model = VitsModel(config).eval()
    stacks.fixed_durations(model.duration_predictor, stacks.FIVE)
    text = torch.ones(2, 6, dtype=torch.long)
    call = stacks._seeded(lambda m: m(text, speaker_id=1).waveform)
    is_as_the_original(Case(model, call), 3, train=call)


def coqui_training(model: Any) -> Any:
    torch.manual_seed(0)
    batch, frames = 2, 24
    text, lengths = torch.randint(1, 20, (batch, 6)), torch.tensor([6, 5])
    spectrogram, steps = torch.randn(batch, 9, frames), torch.tensor([frames, frames - 6])
    out = model(text, lengths, spectrogram, steps, torch.randn(batch, 1, frames * 256))
    return [out[name] for name in ("model_outputs", "z", "z_p", "m_q", "logs_q", "loss_duration") if name in out]


def test_coqui_vits() -> None:
    report = is_as_the_original(made(stacks.coqui_vits, True), 9, train=coqui_training)
    assert {e.op for e in report} == {"wn", "affine_coupling"}


def test_coqui_voice_conversion() -> None:
    is_as_the_original(made(stacks.coqui_voice_conversion, True), 9)


def test_coqui_glow_tts() -> None:
    """Dropout is in its stacks: in training the original runs there. Its small blocks are left on a CPU."""

    def train(model: Any) -> Any:
        torch.manual_seed(0)
        out = model(torch.randint(1, 20, (2, 6)), torch.tensor([6, 5]), torch.randn(2, 24, 8), torch.tensor([24, 20]))
        return [out["z"], out["logdet"], out["y_mean"]]

    is_as_the_original(made(stacks.coqui_glow_tts, True), 4, left=4, train=train)


def test_coqui_glow_tts_after_store_inverse() -> None:
    is_as_the_original(made(stacks.coqui_glow_tts_stored, True), 2, left=6)


def espnet_training(model: Any) -> Any:
    torch.manual_seed(0)
    text, feats = torch.randint(1, 20, (2, 6)), torch.randn(2, 9, 24)
    return model(text, torch.tensor([6, 5]), feats, torch.tensor([24, 18]))


def test_espnet_vits() -> None:
    case = made(stacks.espnet_vits, True)
    espnet_training(case.model)  # the first run, which compiles a search, differs from the others in the last bit
    report = is_as_the_original(case, 5, train=espnet_training)
    assert {e.stack for e in report} == {"ESPnet VITS"}


def test_espnet_vits_with_speakers() -> None:
    from espnet2.gan_tts.vits.generator import VITSGenerator

    torch.manual_seed(0)
    model = VITSGenerator(
        40,
        aux_channels=9,
        hidden_channels=16,
        spks=3,
        global_channels=5,
        segment_size=4,
        text_encoder_blocks=1,
        text_encoder_positionwise_conv_kernel_size=3,
        decoder_channels=16,
        decoder_resblock_kernel_sizes=[3],
        decoder_resblock_dilations=[[1]],
        posterior_encoder_layers=2,
        flow_flows=1,
        flow_layers=2,
    ).eval()
    stacks.randomise(model)
    stacks.fixed_durations(model.duration_predictor, stacks.FIVE)
    text, lengths, speaker = torch.ones(1, 6, dtype=torch.long), torch.tensor([6]), torch.tensor([1])
    call = stacks._seeded(lambda m: m.inference(text, lengths, sids=speaker)[0])
    is_as_the_original(Case(model, call), 3, train=call)


@pytest.mark.parametrize(
    "maker", [stacks.transformers_vits, stacks.coqui_vits, stacks.coqui_glow_tts_stored, stacks.espnet_vits]
)
def test_copies_and_pickles_where_the_original_can(maker: Callable[[bool], Case]) -> None:
    """PyTorch's limits: with weight norm as hooks there are no deep copies, with parametrizations no pickles."""
    model = made(maker, True).model
    for part in model.modules():
        part.__dict__.pop("forward", None)  # the predictors' own durations: closures cannot be pickled

    def possible(action: Callable[[Any], Any]) -> bool:
        try:
            action(model)
        except Exception:
            return False
        return True

    before = [possible(copy.deepcopy), possible(pickle.dumps)]
    report = accelerate(model, strict=True)
    assert [possible(copy.deepcopy), possible(pickle.dumps)] >= before and any(before)
    if before[0]:
        copied = copy.deepcopy(model)
        assert sum(isinstance(part, Block) for part in copied.modules()) == len(report.replaced)
    if before[1]:
        assert not any(isinstance(part, Block) for part in pickle.loads(pickle.dumps(model)).modules())
