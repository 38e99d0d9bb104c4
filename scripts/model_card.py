"""Measures a trained model on sets of clips and writes its model card.

    python scripts/model_card.py MODEL.safetensors --set "held-out espeak-ng voices=corpus/heldout" \\
        --set "LJ Speech=clips" [--train-data corpus/train ...] [--corpus corpus/corpus.json] [--jobs 2] \\
        [--earlier STAGE.json ...] [--card fastflow/assets/waveglow-small.md]

Each clip's mel spectrogram is turned back into audio by the model, as it is and refined to that mel, by Griffin-Lim, by
refining plain noise, and by the same architecture before training; the table holds the means over each set. Training
begins at weights made from its data: given that data (--train-data, as `fastflow train` got it), the last column
measures those, and random initial weights otherwise. The facts of the training come from MODEL.json, which `fastflow
train` writes beside the model, and where that run began with another one's weights (--from-checkpoint), from --earlier.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from demo import FIGURES, SEED, SIGMA

import fastflow
from fastflow.audio import (
    AudioError,
    MelConsistency,
    MelSpectrogram,
    evaluate,
    front_end,
    griffin_lim,
    read_audio,
)
from fastflow.audio.consistency import USUAL_ITERATIONS
from fastflow.checkpoints import CheckpointError, save
from fastflow.models import WaveGlow
from fastflow.train import DataError, SegmentDataset, find_audio
from fastflow.train.start import start_from_data

Figures = dict[str, float]  # figure: value
Means = dict[str, Figures]  # method, a column of the table: its figures
BEFORE, RANDOM = "before training", "untrained model"
NOISE = 0.05  # standard deviation of the noise that is refined for comparison; iterations soon forget it
CARD = Path(fastflow.__file__).parent / "assets" / "waveglow-small.md"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained model and write its model card.")
    parser.add_argument("model", type=Path, help="checkpoint, with the training run's .json beside it")
    parser.add_argument("--set", dest="sets", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--train-data", action="append", default=[], metavar="PATH", help="a source of the training")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each; default: 1")
    parser.add_argument(
        "--earlier", type=Path, action="append", default=[], metavar="JSON", help="facts of a stage before MODEL's"
    )
    parser.add_argument("--corpus", type=Path, help="corpus.json of make_corpus.py, for the description of the data")
    parser.add_argument("--note", action="append", default=[], help="a sentence to add to the card")
    parser.add_argument("--card", type=Path, default=CARD, help=f"file to write; default: {CARD.name} in the package")
    arguments = parser.parse_args()
    sets = dict(entry.partition("=")[::2] for entry in arguments.sets)
    if not all(sets.values()):
        parser.error("--set must be NAME=PATH")
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {arguments.jobs}")
    try:
        files = [*arguments.earlier, arguments.model.with_suffix(".json")]
        stages = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        corpus = json.loads(arguments.corpus.read_text(encoding="utf-8")) if arguments.corpus else None
        start = (
            before_training(stages[0], arguments.train_data)
            if arguments.train_data
            else untrained(stages[0]["config"], SEED)
        )
        last_column = BEFORE if arguments.train_data else RANDOM
        results = measure_sets(arguments.model, start, last_column, sets, arguments.jobs)
    except (AudioError, CheckpointError, DataError, json.JSONDecodeError) as error:
        sys.exit(f"model_card: {error}")
    except OSError as error:
        sys.exit(f"model_card: {error.filename}: {error.strerror or error}")
    arguments.card.write_text(card(stages, corpus, results, arguments.model, arguments.note), encoding="utf-8")
    print("\n\n".join(f"{name}\n\n{table(*result)}" for name, result in results.items()))
    print(f"\nwritten: {arguments.card}")


def untrained(config: dict[str, Any], seed: int) -> WaveGlow:
    torch.manual_seed(seed)
    return WaveGlow(**config).eval()


def before_training(facts: dict[str, Any], sources: list[str]) -> WaveGlow:
    """The weights of step 0: seeded as `fastflow train` does it, then set from the data that it was given."""
    settings, data = facts["settings"], facts["data"]
    model = untrained(facts["config"], settings["seed"])
    dataset = SegmentDataset(
        sources,
        segment=settings["segment"],
        seed=settings["seed"],
        mel=front_end(model),
    )
    found = {"files": len(dataset.clips), "minutes": round(dataset.seconds / 60, 2)}
    if any(data[key] != value for key, value in found.items()):
        raise DataError(
            f"--train-data gives {found['files']} files of {found['minutes']} minutes; "
            f"the training had {data['files']} of {data['minutes']}"
        )
    start_from_data(model, dataset)
    return model


def measure_sets(
    model_path: Path, start: WaveGlow, last_column: str, sets: dict[str, str], jobs: int
) -> dict[str, tuple[Means, int]]:
    """For each set the means per method, and how many clips it has."""
    clips = {name: find_audio([source]) for name, source in sets.items()}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        start_path = Path(folder) / "start.safetensors"
        save(start, start_path)
        models = {"model": model_path, last_column: start_path}
        figures = measure_clips(models, [path for paths in clips.values() for path in paths], jobs)
        for name, paths in clips.items():
            rows = []
            for i in range(len(paths)):
                rows.append(next(figures))
                print(f"\r{name}: {i + 1} of {len(paths)}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            results[name] = {method: mean([row[method] for row in rows]) for method in rows[0]}, len(paths)
        figures.close()
    return results


def measure_clips(models: dict[str, Path], clips: list[Path], jobs: int) -> Iterator[Means]:
    """Each clip's figures, in the order of the clips."""
    if jobs == 1:
        load_models(models)
        yield from map(measure, clips)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=start_worker, initargs=(models,)) as pool:
        yield from pool.map(measure, clips)


MODELS: dict[str, WaveGlow] = {}  # of this process, which may be one of several


def start_worker(models: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    load_models(models)


def load_models(models: dict[str, Path]) -> None:
    MODELS.clear()
    MODELS.update((method, fastflow.load(str(path))) for method, path in models.items())


def measure(clip: Path) -> Means:
    """Each method's figures on one clip."""
    source = read_audio(clip)
    mel = MelSpectrogram()(source)
    outputs = {method: infer(model, mel, len(source)) for method, model in MODELS.items()}
    noise = NOISE * torch.randn(1, len(source), generator=torch.Generator().manual_seed(SEED))
    refine = MelConsistency()
    drawn = outputs.pop("model")
    columns = {
        "model": drawn[0],
        "model, refined": refine(drawn, mel)[0],
        "Griffin-Lim": griffin_lim(mel[0]),
        "noise, refined": refine(noise, mel)[0],
        **{method: output[0] for method, output in outputs.items()},
    }
    rate = MODELS["model"].sampling_rate
    return {method: evaluate(source, output, rate) for method, output in columns.items()}


def infer(model: WaveGlow, mel: torch.Tensor, length: int) -> torch.Tensor:
    return model.infer(mel, sigma=SIGMA, generator=torch.Generator().manual_seed(SEED))[:, :length]


def mean(values: list[Figures]) -> Figures:
    """The mean of each figure over the clips where it is defined (nan where on none)."""
    result = {}
    for key in values[0]:
        defined = [value[key] for value in values if not math.isnan(value[key])]
        result[key] = sum(defined) / len(defined) if defined else math.nan
    return result


def table(means: Means, clips: int) -> str:
    """A markdown table: figures down, methods across."""
    rows = [f"| mean of {clips} clips | {' | '.join(means)} | better |", "|---|" + "---:|" * len(means) + "---|"]
    for key, name, unit, better in FIGURES:
        values = [figures[key] for figures in means.values()]
        cells = [f"{value:.3f}" if value < 10 else f"{value:.1f}" for value in values]
        rows.append(f"| {name} ({unit}) | {' | '.join(cells)} | {better} |")
    return "\n".join(rows)


def card(
    stages: list[dict[str, Any]],
    corpus: dict[str, Any] | None,
    results: dict[str, tuple[Means, int]],
    path: Path,
    notes: list[str],
) -> str:
    """The whole model card, markdown."""
    facts = stages[-1]
    config = facts["config"]
    sizes = ", ".join(f"{key} {value}" for key, value in (config | config["WN_config"]).items() if key != "WN_config")
    data = facts["data"]
    seed = stages[0]["settings"]["seed"]
    last_column = {
        BEFORE: f"Before training: the weights that training began with, made from its data (seed {seed}).",
        RANDOM: f"The untrained model is the same architecture with random weights (seed {SEED}), not those that "
        "training began with.",
    }
    described = next(
        text for method, text in last_column.items() if all(method in means for means, _ in results.values())
    )
    lines = [
        f"# {path.stem}",
        "",
        f"A small WaveGlow vocoder, {facts['parameters'] / 1e6:.2f} million parameters, "
        f"{path.stat().st_size / 1e6:.1f} MB: log-mel spectrogram (22,050 Hz, 80 bands, hop 256) to "
        "speech. It shows that the package works end to end. Its quality is bounded by the time it was trained for: "
        "alone it whispers, and what makes it worth hearing is for the most part the refinement measured below. "
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
        *(f"- {stage_line(stage)}" for stage in stages),
        *(f"- {note}" for note in notes),
        "",
        "## Quality",
        "",
        f"Clips are resynthesised from their own mel spectrograms (sigma {SIGMA}, seed {SEED}, no denoiser). Refined: "
        f"by {USUAL_ITERATIONS} iterations of `MelConsistency`, as `fastflow vocode` does to this model's audio unless "
        "told otherwise; noise, refined, shows what these do without a model. "
        "A figure that a clip leaves undefined (F0 error where no frame is voiced in both signals) is not in its mean. "
        f"Griffin-Lim: librosa, 60 iterations. {described}",
    ]
    for name, result in results.items():
        lines += ["", f"### {name}", "", table(*result)]
    return "\n".join(lines) + "\n"


def stage_line(facts: dict[str, Any]) -> str:
    """One run of `fastflow train`; each but the first begins with the weights of the one before."""
    settings, progress = facts["settings"], facts["progress"]
    hours = progress["samples"] / 22050 / 3600
    precision = settings["precision"]
    products = "" if precision == "float32" else f", {precision} products"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{progress['step']:,} steps of {settings['batch_size']} segments of {settings['segment']} samples "
        f"({hours:.1f} hours of audio drawn), Adam, peak learning rate {settings['lr']:g}, averaged weights, seed "
        f"{settings['seed']}: {progress['seconds'] / 60:.0f} minutes on {facts['device']}, {facts['threads']} "
        f"thread(s){products}. Final loss, smoothed: {progress['loss']:.3f}; skipped steps: "
        f"{progress['skipped_steps']}. {versions}."
    )


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
