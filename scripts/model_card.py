"""Measures a trained model on sets of clips and writes its model card.

    python scripts/model_card.py MODEL.safetensors --set "held-out espeak-ng voices=corpus/heldout" \\
        --set "LJ Speech=clips" [--corpus corpus/corpus.json] [--card fastflow/assets/waveglow-small.md]

Each clip's mel spectrogram is turned back into audio by the model, by Griffin-Lim, and by the same model before
training; the table holds the means over each set. The facts of the training run come from MODEL.json, which `fastflow
train` writes beside the model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from demo import FIGURES, SEED, SIGMA

import fastflow
from fastflow.audio import AudioError, MelSpectrogram, evaluate, griffin_lim, read_audio
from fastflow.checkpoints import CheckpointError
from fastflow.models import WaveGlow
from fastflow.train import DataError, find_audio

Figures = dict[str, float]
METHODS = ("model", "Griffin-Lim", "untrained model")
CARD = Path(fastflow.__file__).parent / "assets" / "waveglow-small.md"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained model and write its model card.")
    parser.add_argument("model", type=Path, help="checkpoint, with the training run's .json beside it")
    parser.add_argument("--set", dest="sets", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--corpus", type=Path, help="corpus.json of make_corpus.py, for the description of the data")
    parser.add_argument("--note", action="append", default=[], help="a sentence to add to the card")
    parser.add_argument("--card", type=Path, default=CARD, help=f"file to write; default: {CARD.name} in the package")
    arguments = parser.parse_args()
    sets = dict(entry.partition("=")[::2] for entry in arguments.sets)
    if not all(sets.values()):
        parser.error("--set must be NAME=PATH")
    try:
        facts = json.loads(arguments.model.with_suffix(".json").read_text(encoding="utf-8"))
        corpus = json.loads(arguments.corpus.read_text(encoding="utf-8")) if arguments.corpus else None
        results = measure_sets(arguments.model, sets)
    except (AudioError, CheckpointError, DataError, json.JSONDecodeError) as error:
        sys.exit(f"model_card: {error}")
    except OSError as error:
        sys.exit(f"model_card: {error.filename}: {error.strerror or error}")
    arguments.card.write_text(card(facts, corpus, results, arguments.model, arguments.note), encoding="utf-8")
    print("\n\n".join(f"{name}\n\n{table(*result)}" for name, result in results.items()))
    print(f"\nwritten: {arguments.card}")


def measure_sets(model_path: Path, sets: dict[str, str]) -> dict[str, tuple[dict[str, Figures], int]]:
    """For each set the means per method, and how many clips it has."""
    model = fastflow.load(str(model_path))
    torch.manual_seed(SEED)
    untrained = WaveGlow(**model.config).eval()
    results = {}
    for name, source in sets.items():
        clips = find_audio([source])
        figures: dict[str, list[Figures]] = {method: [] for method in METHODS}
        for i, clip in enumerate(clips):
            print(f"\r{name}: {i + 1} of {len(clips)}", end="", file=sys.stderr, flush=True)
            for method, value in measure(read_audio(clip), model, untrained).items():
                figures[method].append(value)
        print(file=sys.stderr)
        results[name] = {method: mean(values) for method, values in figures.items()}, len(clips)
    return results


def measure(source: torch.Tensor, model: WaveGlow, untrained: WaveGlow) -> dict[str, Figures]:
    """Each method's figures on one clip."""
    mel = MelSpectrogram()(source)
    outputs = {
        "model": infer(model, mel, len(source)),
        "Griffin-Lim": griffin_lim(mel[0]),
        "untrained model": infer(untrained, mel, len(source)),
    }
    return {method: evaluate(source, output, model.sampling_rate) for method, output in outputs.items()}


def infer(model: WaveGlow, mel: torch.Tensor, length: int) -> torch.Tensor:
    return model.infer(mel, sigma=SIGMA, generator=torch.Generator().manual_seed(SEED))[0, :length]


def mean(values: list[Figures]) -> Figures:
    """The mean of each figure over the clips where it is defined (nan where on none)."""
    result = {}
    for key in values[0]:
        defined = [value[key] for value in values if not math.isnan(value[key])]
        result[key] = sum(defined) / len(defined) if defined else math.nan
    return result


def table(means: dict[str, Figures], clips: int) -> str:
    """A markdown table: figures down, methods across."""
    rows = [f"| mean of {clips} clips | {' | '.join(METHODS)} | better |", "|---|" + "---:|" * len(METHODS) + "---|"]
    for key, name, unit, better in FIGURES:
        cells = (
            f"{means[method][key]:.3f}" if means[method][key] < 10 else f"{means[method][key]:.1f}"
            for method in METHODS
        )
        rows.append(f"| {name} ({unit}) | {' | '.join(cells)} | {better} |")
    return "\n".join(rows)


def card(
    facts: dict[str, Any],
    corpus: dict[str, Any] | None,
    results: dict[str, tuple[dict[str, Figures], int]],
    path: Path,
    notes: list[str],
) -> str:
    """The whole model card, markdown."""
    config, settings, progress = facts["config"], facts["settings"], facts["progress"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    sizes = ", ".join(f"{key} {value}" for key, value in (config | config["WN_config"]).items() if key != "WN_config")
    hours = progress["samples"] / 22050 / 3600
    data = facts["data"]
    products = ", bfloat16 products" if settings["bf16"] else ""
    lines = [
        f"# {path.stem}",
        "",
        f"A small WaveGlow vocoder, {facts['parameters'] / 1e6:.2f} million parameters, "
        f"{path.stat().st_size / 1e6:.1f} MB: log-mel spectrogram (22,050 Hz, 80 bands, hop 256) to "
        "speech. It shows that the package works end to end; its quality is bounded by the time it was trained for. "
        "Licence: Apache-2.0.",
        "",
        "## Architecture",
        "",
        sizes + ".",
        "",
        "## Training",
        "",
        f"- Data: {data['minutes']} minutes from {data['files']} files ({', '.join(data['sources'])}), files that were "
        "named several times counted several times.",
        *corpus_lines(corpus),
        f"- Steps: {progress['step']:,} of {settings['batch_size']} segments of {settings['segment']} samples "
        f"({hours:.1f} hours of audio drawn), Adam, peak learning rate {settings['lr']:g}, averaged weights.",
        f"- Time: {progress['seconds'] / 60:.0f} minutes of training on {facts['device']}, {facts['threads']} thread(s)"
        f"{products}.",
        f"- Final loss, smoothed: {progress['loss']:.3f}; skipped steps (not finite): {progress['skipped_steps']}.",
        f"- Versions: {versions}.",
        *(f"- {note}" for note in notes),
        "",
        "## Quality",
        "",
        f"Clips are resynthesised from their own mel spectrograms (sigma {SIGMA}, seed {SEED}, no denoiser). "
        "Griffin-Lim: librosa, 60 iterations. The untrained model is the same architecture with initial weights.",
    ]
    for name, result in results.items():
        lines += ["", f"### {name}", "", table(*result)]
    return "\n".join(lines) + "\n"


def corpus_lines(corpus: dict[str, Any] | None) -> list[str]:
    if corpus is None:
        return []
    train, heldout = corpus["train"], corpus["heldout"]
    return [
        f"- Synthetic speech: {corpus['espeak_ng']}, seed {corpus['seed']}, {train['minutes']} minutes, "
        f"{len(train['voices'])} voice variants ({', '.join(train['voices'])}) in several English accents, rates and "
        f"pitches, reading {train['sentences']} public-domain sentences. Held out: {heldout['minutes']} minutes, the "
        f"variants {', '.join(heldout['voices'])} and {heldout['sentences']} other sentences.",
    ]


if __name__ == "__main__":
    main()
