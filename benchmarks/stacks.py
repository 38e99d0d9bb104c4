"""Check and time other people's models, as they are and after `fastflow.accelerate`.

    make stacks                                             # installs the packages, in .venv/stacks
    PYTHONPATH=.venv/stacks .venv/bin/python -m benchmarks.stacks                 # every model: some minutes
    PYTHONPATH=.venv/stacks .venv/bin/python -m benchmarks.stacks --case "Coqui VITS, text to speech"
    python -m benchmarks.stacks --write docs/README.md      # the table of stored rows, for readers
    python -m benchmarks.stacks --tiny --rounds 1           # the same code at toy sizes, to see that it runs

Each model is made twice with the same random weights; one of the two is accelerated. Both are given the same inputs
and the same noise, and take turns. A model that is out of bounds gets no time; the exit status is then 1. Durations are
five frames for every character; the models' own predictors run, but random weights predict any length.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

import fastflow
from benchmarks.cpu import RESULTS
from fastflow.bench import rows
from fastflow.bench.rows import Row

HEAD = "| model | before, ms | after, ms | times as fast, medians (least) | error |\n|---|---:|---:|---:|---:|"
BEGIN, END = "<!-- begin stacks -->\n", "<!-- end stacks -->\n"
BOUND = 1e-4
"""Of a whole model in float32: rms of the error over rms of the signal."""


class Case(NamedTuple):
    """A model with random weights, and how it is used."""

    model: nn.Module
    call: Callable[[nn.Module], Any]
    """Runs a model like `model`; the noise is the same in every call."""
    samples: int = 0
    """Samples of audio, or steps of a mel spectrogram, that a call makes."""


def randomise(module: nn.Module) -> None:
    """Give parameters that start at zero, of which the last of every coupling are, values that matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() >= 2 and not p.any():
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))


def fixed_durations(predictor: nn.Module, log_duration: float) -> None:
    """Let a duration predictor run and then say this for every character."""
    predict = predictor.forward

    def forward(x: Tensor, mask: Tensor, *args: Any, **options: Any) -> Tensor:
        predict(x, mask, *args, **options)
        return torch.full_like(mask, log_duration)

    predictor.forward = forward  # type: ignore[method-assign]


FIVE = math.log(4.9)  # rounded up after exp


def _text(tiny: bool) -> Tensor:
    return torch.randint(1, 20, (1, 6 if tiny else 100), generator=torch.Generator().manual_seed(0))


def _seeded(run: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    def call(model: nn.Module) -> Any:
        torch.manual_seed(0)
        numpy.random.seed(0)  # transformers drops whole layers by it in training
        return run(model)

    return call


def transformers_vits(tiny: bool) -> Case:
    """`VitsModel` of transformers with its default sizes, those of facebook/mms-tts."""
    from transformers import VitsConfig, VitsModel

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "ffn_dim": 16,
        "flow_size": 8,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "posterior_encoder_num_wavenet_layers": 2,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
    }
    model = VitsModel(VitsConfig(**(sizes if tiny else {}))).eval()
    fixed_durations(model.duration_predictor, FIVE)
    text = _text(tiny)
    return Case(model, _seeded(lambda m: m(text).waveform), 5 * text.shape[1] * 256)


def transformers_vits_medium(tiny: bool) -> Case:
    """The same with a decoder of the size of Piper's medium voices."""
    from transformers import VitsConfig, VitsModel

    if tiny:
        return transformers_vits(tiny)
    decoder: dict[str, Any] = {
        "upsample_rates": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "upsample_initial_channel": 256,
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1], [2], [3]],
    }
    model = VitsModel(VitsConfig(**decoder)).eval()
    fixed_durations(model.duration_predictor, FIVE)
    text = _text(tiny)
    return Case(model, _seeded(lambda m: m(text).waveform), 5 * text.shape[1] * 256)


def stub_torchaudio() -> None:
    """Let Coqui's package be imported without torchaudio and torchcodec, which its models do not use."""
    for name in ("torchaudio", "torchaudio.transforms", "torchaudio.functional", "torchcodec"):
        if name not in sys.modules:
            stub = types.ModuleType(name)
            stub.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = stub


def coqui_vits_model(tiny: bool, speaker: int = 0) -> nn.Module:
    """`Vits`, conditioned on a vector of `speaker` values, or none."""
    stub_torchaudio()
    from TTS.tts.configs.vits_config import VitsConfig
    from TTS.tts.models.vits import Vits, VitsArgs

    sizes: dict[str, Any] = {
        "hidden_channels": 16,
        "hidden_channels_ffn_text_encoder": 16,
        "num_layers_text_encoder": 1,
        "num_layers_posterior_encoder": 2,
        "num_layers_flow": 2,
        "out_channels": 9,
        "spec_segment_size": 4,
        "upsample_initial_channel_decoder": 32,
        "resblock_kernel_sizes_decoder": [3],
        "resblock_dilation_sizes_decoder": [[1, 3, 5]],
    }
    more: dict[str, Any] = {"use_d_vector_file": True, "d_vector_dim": speaker} if speaker else {}
    arguments = VitsArgs(num_chars=40, init_discriminator=False, **(sizes if tiny else {}), **more)
    model: nn.Module = Vits(VitsConfig(model_args=arguments)).eval()
    fixed_durations(model.duration_predictor, FIVE)  # type: ignore[arg-type]
    return model


def coqui_vits(tiny: bool) -> Case:
    """Coqui's `Vits` from text to audio."""
    model, text = coqui_vits_model(tiny), _text(tiny)
    return Case(model, _seeded(lambda m: m.inference(text)["model_outputs"]), 5 * text.shape[1] * 256)


def coqui_voice_conversion(tiny: bool) -> Case:
    """Coqui's `Vits` from one voice to another: posterior encoder, flow both ways, decoder."""
    width = 8 if tiny else 256
    model: Any = coqui_vits_model(tiny, width)
    model.speaker_manager = types.SimpleNamespace(num_speakers=2)
    frames = 12 if tiny else 500
    generator = torch.Generator().manual_seed(0)
    spectrogram = torch.randn(1, model.args.out_channels, frames, generator=generator)
    voices = torch.randn(2, 1, width, generator=generator)
    lengths = torch.tensor([frames])

    def convert(m: Any) -> Any:
        return m.inference_voice_conversion(spectrogram, lengths, *voices)[0]

    return Case(model, _seeded(convert), frames * 256)


def coqui_glow_tts(tiny: bool) -> Case:
    """Coqui's `GlowTTS` from text to a mel spectrogram, as trained."""
    stub_torchaudio()
    from TTS.tts.configs.glow_tts_config import GlowTTSConfig
    from TTS.tts.models.glow_tts import GlowTTS

    sizes: dict[str, Any] = {
        "hidden_channels_enc": 16,
        "hidden_channels_dec": 16,
        "hidden_channels_dp": 16,
        "num_flow_blocks_dec": 2,
        "num_block_layers": 2,
        "out_channels": 8,
        "encoder_params": {
            "kernel_size": 3,
            "dropout_p": 0.1,
            "num_layers": 1,
            "num_heads": 2,
            "hidden_channels_ffn": 16,
            "input_length": None,
        },
    }
    model = GlowTTS(GlowTTSConfig(num_chars=40, inference_noise_scale=0.667, **(sizes if tiny else {}))).eval()
    fixed_durations(model.encoder.duration_predictor, math.log(5.9))  # less one after exp
    text = _text(tiny)
    aux = {"x_lengths": torch.tensor([text.shape[1]]), "d_vectors": None, "speaker_ids": None}
    return Case(model, _seeded(lambda m: m.inference(text, aux)["model_outputs"]), 5 * text.shape[1])


def coqui_glow_tts_stored(tiny: bool) -> Case:
    """The same after `store_inverse`, as `load_checkpoint(eval=True)` leaves it: no weight norm, inverses kept."""
    case = coqui_glow_tts(tiny)
    case.model.store_inverse()  # type: ignore[operator]
    return case


def espnet_vits(tiny: bool) -> Case:
    """ESPnet's `VITSGenerator` from text to audio."""
    from espnet2.gan_tts.vits.generator import VITSGenerator

    sizes: dict[str, Any] = {
        "aux_channels": 9,
        "hidden_channels": 16,
        "segment_size": 4,
        "text_encoder_blocks": 1,
        "decoder_channels": 16,
        "decoder_resblock_kernel_sizes": [3],
        "decoder_resblock_dilations": [[1]],
        "flow_flows": 2,
        "posterior_encoder_layers": 2,
        "flow_layers": 2,
    }
    # the layers of the recipes
    kernels = {"text_encoder_positionwise_conv_kernel_size": 3}
    model = VITSGenerator(40, **kernels, **(sizes if tiny else {})).eval()
    fixed_durations(model.duration_predictor, FIVE)
    text = _text(tiny)
    lengths = torch.tensor([text.shape[1]])
    return Case(model, _seeded(lambda m: m.inference(text, lengths)[0]), 5 * text.shape[1] * 256)


def waveglow(tiny: bool) -> Case:
    """WaveGlow-256 as DeepLearningExamples publishes it: the one whose synthesis runs on a CPU."""
    from tests.stacks.vits_twin import NORMS
    from tests.stacks.waveglow_twin import WaveGlow

    sizes = {"mels": 80, "flows": 12, "early_every": 4, "layers": 8, "width": 256, "hop": 256, "window": 1024}
    model = WaveGlow("entry", NORMS["hooks"], **({} if tiny else sizes)).eval()
    mel = torch.randn(1, model.upsample.in_channels, 3 if tiny else 80)
    return Case(model, _seeded(lambda m: m.infer(mel, 0.6)), mel.shape[2] * model.upsample.stride[0])


def flowavenet(tiny: bool) -> Case:
    """FloWaveNet with its published sizes, but for the channels that leave after half of the blocks."""
    from tests.stacks.flowavenet_twin import ActNorm, Flowavenet
    from tests.stacks.vits_twin import NORMS

    toy = {"mels": 3, "blocks": 2, "flows": 1, "layers": 2, "width": 8}
    sizes = {"mels": 80, "blocks": 8, "flows": 6, "layers": 2, "width": 256}
    model = Flowavenet(NORMS["hooks"], **(toy if tiny else sizes)).eval()
    for part in model.modules():
        if isinstance(part, ActNorm):
            part.initialized = True
    mel = torch.rand(1, (toy if tiny else sizes)["mels"], 1 if tiny else 43)
    z = 0.8 * torch.randn(1, 1, 256 * mel.shape[2])
    return Case(model, lambda m: m.reverse(z, mel), z.shape[2])


def parallel_wavegan(tiny: bool) -> Case:
    """kan-bayashi's generator with the sizes of its version 1; upsampling is a repetition."""
    from tests.stacks.parallel_wavegan_twin import ParallelWaveGANGenerator, WaveNetResidualBlock
    from tests.stacks.vits_twin import NORMS

    sizes = {"layers": 30, "stacks": 3, "width": 64, "gate": 128, "skip": 64, "aux": 80}
    model = ParallelWaveGANGenerator(WaveNetResidualBlock, NORMS["hooks"], **({} if tiny else sizes)).eval()
    frames = 3 if tiny else 86
    z, c = torch.randn(1, 1, 256 * frames), torch.randn(1, 5 if tiny else 80, frames)
    return Case(model, lambda m: m(z, c), z.shape[2])


_SMALL_WAVEGAN = {"stacks": 2, "gate_channels": 16, "skip_channels": 8}


def espnet_wavegan(tiny: bool) -> Case:
    """ESPnet's `ParallelWaveGANGenerator`."""
    from espnet2.gan_tts.parallel_wavegan.parallel_wavegan import ParallelWaveGANGenerator

    model = ParallelWaveGANGenerator(**({"layers": 4, "residual_channels": 8, **_SMALL_WAVEGAN} if tiny else {})).eval()
    c = torch.randn(6 if tiny else 86, 80)
    z = torch.randn(256 * len(c), 1)
    return Case(model, lambda m: m.inference(c, z), len(z))


def coqui_wavegan(tiny: bool) -> Case:
    """Coqui's `ParallelWaveganGenerator`."""
    stub_torchaudio()
    from TTS.vocoder.models.parallel_wavegan_generator import ParallelWaveganGenerator

    sizes = {"num_res_blocks": 4, "res_channels": 8, **_SMALL_WAVEGAN}
    model = ParallelWaveganGenerator(**(sizes if tiny else {})).eval()
    c = torch.randn(1, 80, 6 if tiny else 86)
    return Case(model, _seeded(lambda m: m(c)), 256 * c.shape[2])


def diffwave(tiny: bool) -> Case:
    """One of DiffWave's 6 to 50 steps, without the upsampling that is the same in all of them."""
    from tests.stacks.diffwave_twin import DiffWave

    sizes = {"mels": 80, "width": 64, "layers": 30, "cycle": 10, "steps": 512}
    model = DiffWave(**({} if tiny else sizes)).eval()
    steps, mels = (6, 5) if tiny else (512, 80)
    audio = torch.randn(1, 60 if tiny else 22016)
    step, spectrogram = torch.randn(1, steps), torch.randn(1, mels, audio.shape[1])
    return Case(model, lambda m: m(audio, step, spectrogram), audio.shape[1])


def diffsinger(tiny: bool) -> Case:
    """One step of the diffusion network of DiffSinger and so-vits-svc, with the latter's sizes."""
    from tests.stacks.diffwave_twin import WaveNet

    sizes = {"mels": 128, "width": 384, "layers": 20, "hidden": 256}
    model = WaveNet(**({} if tiny else sizes)).eval()
    mels, width, hidden, steps = (5, 8, 7, 12) if tiny else (128, 384, 256, 500)
    inputs = torch.randn(1, mels, steps), torch.randn(1, width), torch.randn(1, hidden, steps)
    return Case(model, lambda m: m(*inputs), steps)


CASES: dict[str, Callable[[bool], Case]] = {
    "transformers VITS, text to speech": transformers_vits,
    "transformers VITS with Piper's medium decoder, text to speech": transformers_vits_medium,
    "Coqui VITS, text to speech": coqui_vits,
    "Coqui VITS, voice conversion": coqui_voice_conversion,
    "Coqui Glow-TTS, text to mel": coqui_glow_tts,
    "Coqui Glow-TTS after store_inverse, text to mel": coqui_glow_tts_stored,
    "ESPnet VITS, text to speech": espnet_vits,
    "WaveGlow-256, 80 frames": waveglow,
    "FloWaveNet, 43 frames": flowavenet,
    "Parallel WaveGAN, 86 frames": parallel_wavegan,
    "ESPnet Parallel WaveGAN, 86 frames": espnet_wavegan,
    "Coqui Parallel WaveGAN, 86 frames": coqui_wavegan,
    "DiffWave, one step, 22016 samples": diffwave,
    "DiffSinger network, one step, 500 frames": diffsinger,
}


def made(maker: Callable[[bool], Case], tiny: bool) -> Case:
    """Make a case, each time with the same weights."""
    torch.manual_seed(0)
    case = maker(tiny)
    randomise(case.model)
    return case


@torch.no_grad()
def bench(name: str, tiny: bool, rounds: int, clock: Callable[[], float]) -> tuple[list[Row], str]:
    """Return the rows of the original and of the accelerated model, and the report; `clock` gives seconds."""
    cases = [made(CASES[name], tiny) for _ in range(2)]
    report = fastflow.accelerate(cases[1].model)
    variants = ("original", "fastflow")
    made_rows = [
        Row("stacks", name, "", "float32", variant, samples=cases[0].samples, threads=torch.get_num_threads())
        for variant in variants
    ]
    expected, got = (case.call(case.model).double() for case in cases)
    ours = made_rows[1]
    ours.error, ours.bound = float((got - expected).norm() / expected.norm()), BOUND
    if not report.replaced:
        ours.refused = "nothing was replaced"
    elif not ours.error <= BOUND:
        ours.refused = "out of bounds"
    times: list[list[float]] = [[], []]
    for turn in range(0 if ours.refused else rounds):
        for i in (0, 1) if turn % 2 else (1, 0):
            start = clock()
            cases[i].call(cases[i].model)
            times[i].append((clock() - start) * 1e3)
    for row, taken in zip(made_rows, times, strict=True):
        row.load = os.getloadavg()[0]
        if taken:
            row.set_times(taken)
    return made_rows, str(report)


def text() -> str:
    """Return the stored rows as tables, one for each machine and number of threads."""
    parts = []
    for path in sorted(RESULTS.glob("*/stacks.json")):
        stored = rows.read(path)
        pairs: dict[tuple[int, str], list[Row]] = {}
        for row in stored:
            pairs.setdefault((row.threads, row.case), []).append(row)
        for threads in sorted({row.threads for row in stored}):
            named = f"{path.parent.name}, {threads} thread{'s' if threads > 1 else ''}, float32, {_clocks(stored)}:"
            lines = [line(pairs[threads, case]) for case in CASES if (threads, case) in pairs]
            parts.append("\n".join([named, "", HEAD, *lines]))
    return "\n\n".join(parts) + "\n"


def _clocks(stored: Sequence[Row]) -> str:
    """Return what the rows' times are of."""
    return " or ".join(sorted({row.about.get("clock", "wall time") for row in stored}))


def generated(guide: str) -> str:
    """Return a guide's text with its table made anew from the stored rows."""
    before, rest = guide.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + text() + "\n" + END + after


def line(pair: Sequence[Row]) -> str:
    """Return one case's times and their ratio, of medians and of the least."""
    before, after = pair
    if after.refused or not (before.median_ms and after.median_ms and before.min_ms and after.min_ms):
        return f"| {after.case} | {after.refused} | | | |"
    ratio = f"{before.median_ms / after.median_ms:.3f} ({before.min_ms / after.min_ms:.3f})"
    return f"| {after.case} | {before.median_ms:.0f} | {after.median_ms:.0f} | {ratio} | {after.error:.1e} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", action="store_true", help="count processor time, on one thread: for a busy machine")
    parser.add_argument("--note", default="", help="what else is known of the machine's state; stored with the rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=rows.commit(), help="what the rows say was measured")
    parser.add_argument("--verbose", action="store_true", help="print each report")
    parser.add_argument("--write", type=Path, metavar="GUIDE", help="only renew the table of stored rows in this file")
    options = parser.parse_args(arguments)
    if options.write is not None:
        options.write.write_text(generated(options.write.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    if options.busy and options.threads != 1:
        parser.error("--busy needs --threads 1")
    torch.set_num_threads(options.threads)
    about = rows.about(torch.device("cpu"), options.commit) | {"note": options.note}
    clock = time.process_time if options.busy else time.perf_counter
    about |= {"clock": "processor time" if options.busy else "wall time"}
    about |= {name: rows.version(name) for name in ("transformers", "coqui-tts", "espnet")}
    machine = rows.machine(torch.device("cpu"))
    print(f"{machine}, {options.threads} threads")
    print(HEAD, flush=True)
    failed = False
    for name in options.case:
        pair, report = bench(name, options.tiny, options.rounds, clock)
        for row in pair:
            row.about = about
        failed |= any(row.refused for row in pair)
        rows.store(pair, options.out / machine)
        print(line(pair) + (f"\n{report}\n" if options.verbose else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
