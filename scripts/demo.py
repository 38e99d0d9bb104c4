"""Resynthesises a clip with the bundled model and says how well: `make demo`, or `make demo IN=clip.wav`.

    python scripts/demo.py [--in FILE] [--model NAME_OR_FILE] [--out DIRECTORY]

Computes the clip's mel spectrogram, makes audio of it with the model, as it is and refined, and with Griffin-Lim,
prints how close each comes to the clip, and writes output.wav (refined), unrefined.wav, griffin_lim.wav and
comparison.png to DIRECTORY, replacing those of an earlier run. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from pathlib import Path

import torch

import fastflow
from fastflow.audio import (
    AudioError,
    MelConsistency,
    MelSpectrogram,
    evaluate,
    griffin_lim,
    plot_comparison,
    read_audio,
    write_audio,
)
from fastflow.audio.consistency import USUAL_ITERATIONS
from fastflow.checkpoints import CheckpointError
from fastflow.cli.options import describe

CLIP = Path(fastflow.__file__).parent / "assets" / "demo.flac"
SIGMA = 0.6
SEED = 0

# figure of `evaluate`, its name in the table, its unit, which way is better
FIGURES = (
    ("log_mel_distance", "log-mel distance", "dB", "lower"),
    ("mel_cepstral_distortion", "mel-cepstral distortion", "dB", "lower"),
    ("stoi", "STOI", "0 to 1", "higher"),
    ("pesq", "PESQ", "MOS, 1 to 4.6", "higher"),
    ("f0_rmse_cents", "F0 error", "cents", "lower"),
    ("voicing_error", "voicing error", "fraction", "lower"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--in", dest="clip", type=Path, default=CLIP, help="audio file; default: the demo clip")
    parser.add_argument("--model", default="waveglow-small", help="checkpoint file or a bundled model's name")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="directory for the results; default: demo")
    arguments = parser.parse_args()
    missing = [name for name in ("pystoi", "pesq", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"demo: {', '.join(missing)} not installed; run: pip install 'fastflow[plot,metrics]'")
    try:
        run(arguments.clip, arguments.model, arguments.out)
    except (AudioError, CheckpointError) as error:
        sys.exit(f"demo: {error}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"demo: {describe(arguments.model, error)}")
    except OSError as error:
        sys.exit(f"demo: {error.filename or arguments.out}: {error.strerror or error}")


def run(clip: Path, name: str, directory: Path) -> None:
    source = read_audio(clip)
    model = fastflow.load(name)
    mel = MelSpectrogram()(source)

    consistency = MelConsistency()

    short = mel[:, :, :16]
    consistency(model.infer(short, sigma=SIGMA), short, 1)  # so that one-time costs are not timed
    start = time.perf_counter()
    drawn = model.infer(mel, sigma=SIGMA, generator=torch.Generator().manual_seed(SEED))[:, : len(source)]
    took = time.perf_counter() - start
    start = time.perf_counter()
    refined = consistency(drawn, mel, USUAL_ITERATIONS)
    refining = time.perf_counter() - start

    rate = model.sampling_rate
    outputs = {"model": drawn[0], "refined": refined[0], "Griffin-Lim": griffin_lim(mel[0])}
    figures = evaluate_all(source, outputs, rate)
    directory.mkdir(parents=True, exist_ok=True)
    names = {"refined": "output.wav", "model": "unrefined.wav", "Griffin-Lim": "griffin_lim.wav"}
    for method, file in names.items():
        write_audio(directory / file, outputs[method], rate, overwrite=True)
    plot_comparison(directory / "comparison.png", source, refined[0], rate, overwrite=True)

    seconds, both = len(source) / rate, took + refining
    print(f"input    {clip}, {seconds:.2f} s")
    print(f"model    {name}, sigma {SIGMA:g}, seed {SEED}, CPU, {torch.get_num_threads()} threads")
    print(f"refined  in {USUAL_ITERATIONS} iterations")
    print(
        f"speed    model {took:.2f} s, refining {refining:.2f} s, real-time factor {both / seconds:.3f} "
        f"({seconds / both:.1f} times real time)"
    )
    print(f"\n{table(figures)}\n")
    for file in (*names.values(), "comparison.png"):
        print(f"wrote    {directory / file}")


def evaluate_all(source: torch.Tensor, outputs: dict[str, torch.Tensor], rate: int) -> dict[str, dict[str, float]]:
    """The figures of each output; why one is not defined (nan), as of silence, is logged with the output's name."""
    log, handler = logging.getLogger("fastflow.audio"), logging.StreamHandler()
    log.addHandler(handler)
    try:
        figures = {}
        for column, output in outputs.items():
            handler.setFormatter(logging.Formatter(f"{column}: %(message)s"))
            figures[column] = evaluate(source, output, rate)
        return figures
    finally:
        log.removeHandler(handler)


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [("", "unit", "better", *figures)]
    for key, label, unit, better in FIGURES:
        lines.append((label, unit, better, *(f"{columns[key]:.3f}" for columns in figures.values())))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(cells)]
        rows.append("  ".join(padded))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
