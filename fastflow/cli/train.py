"""``fastflow train``: a small WaveGlow from a folder of audio."""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from fastflow.cli import options

# The bundled model's architecture; --config and the options below replace parts of it.
ARCHITECTURE: dict[str, Any] = {
    "n_mel_channels": 80,
    "n_flows": 8,
    "n_group": 128,
    "n_early_every": 4,
    "n_early_size": 0,
    "WN_config": {"n_layers": 4, "n_channels": 128, "kernel_size": 3},
    "conditioning": "group",
}


@click.command()
@click.argument("data", metavar="DATA...", nargs=-1, required=True, type=options.TEXT)
@click.option("-o", "--output", metavar="OUT.safetensors", required=True, type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps.")
@click.option("--minutes", type=float, help="Stop after this much training time.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Segments per step.")
@click.option("--segment", type=click.IntRange(min=1), default=8192, show_default=True, help="Samples per segment.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak learning rate of Adam.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of weights and segments."
)
@click.option(
    "--config", type=options.TEXT, metavar="JSON", help="Arguments of WaveGlow as JSON, or a file that holds them."
)
@click.option("--n-flows", type=click.IntRange(min=1), help="Number of flows.")
@click.option("--n-group", type=click.IntRange(min=2), help="Samples that one flow position holds.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers of each WN.")
@click.option("--channels", type=click.IntRange(min=1), help="Channels of each WN.")
@click.option("--bf16/--no-bf16", default=False, show_default=True, help="Matrix products in bfloat16.")
@options.device
@click.option("--resume", is_flag=True, help="Go on from OUT's .state.pt.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def train(
    data: tuple[str, ...],
    output: Path,
    steps: int | None,
    minutes: float | None,
    batch_size: int,
    segment: int,
    lr: float,
    seed: int,
    config: str | None,
    n_flows: int | None,
    n_group: int | None,
    layers: int | None,
    channels: int | None,
    bf16: bool,
    device: str,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train a WaveGlow on audio: files, directories (searched recursively for wav and flac) or quoted globs.

    Writes OUT.safetensors (averaged weights and configuration), OUT.json (settings, time, loss) and
    OUT.state.pt (for --resume), each replaced every five minutes. Ctrl-C saves and stops.
    """
    options.require((steps is None) != (minutes is None), "give --steps or --minutes, one of them")
    options.require(minutes is None or 0 < minutes < math.inf, f"`--minutes` must be > 0; got {minutes}")
    options.require(0 < lr < math.inf, f"`--lr` must be > 0; got {lr:g}")
    remedy = "--resume goes on from it, --overwrite replaces it"
    options.check_output_file("OUT", output, ".safetensors", resume or overwrite, remedy)
    options.check_device(device)
    architecture = _architecture(config, n_flows, n_group, layers, channels)

    import torch

    from fastflow.models import WaveGlow
    from fastflow.train import DataError, SegmentDataset, TrainingError
    from fastflow.train import train as run

    known = list(inspect.signature(WaveGlow).parameters)
    unknown = sorted(architecture.keys() - set(known))
    options.require(not unknown, f"--config: unknown {', '.join(unknown)}; the keys are {', '.join(known)}")
    bands = ARCHITECTURE["n_mel_channels"]
    got = architecture["n_mel_channels"]
    options.require(got == bands, f"`n_mel_channels` must be {bands}: the front end makes {bands} mel bands; got {got}")
    torch.manual_seed(seed)
    try:
        model = WaveGlow(**architecture)
    except (TypeError, ValueError, RuntimeError) as error:
        raise options.UsageError(options.describe("cannot build this model", error)) from error
    try:
        dataset = SegmentDataset(
            data, segment=segment, seed=seed, sampling_rate=model.sampling_rate, hop_length=model.hop_length
        )
    except DataError as error:
        raise options.UsageError(str(error)) from error
    for _, reason in dataset.skipped:
        options.warn(f"skipped: {reason}")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    minutes_of_audio = f"{dataset.seconds / 60:.1f} minutes in {len(dataset.files)} files"
    click.echo(f"{millions:.2f} million parameters, {minutes_of_audio}", err=True)
    try:
        facts = run(
            model.to(device),
            dataset,
            output,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            lr=lr,
            bf16=bf16,
            resume=resume,
            overwrite=overwrite,
        )
    except TrainingError as error:
        raise options.Failure(str(error)) from error
    except KeyboardInterrupt:
        options.warn(f"stopped; --resume goes on from {output}")
        sys.exit(130)
    progress = facts["progress"]
    name = options.printable(str(output))
    click.echo(f"{name}: {progress['step']} steps, {progress['seconds']:.0f} s, loss {progress['loss']:.4f}")


def _architecture(
    config: str | None, n_flows: int | None, n_group: int | None, layers: int | None, channels: int | None
) -> dict[str, Any]:
    """The arguments of WaveGlow: the default architecture, changed by --config, then by single options."""
    result = {**ARCHITECTURE, "WN_config": dict(ARCHITECTURE["WN_config"])}
    if config is not None:
        result |= _read_json(config)
        options.require(isinstance(result["WN_config"], dict), "--config: `WN_config` must be an object")
        result["WN_config"] = {**ARCHITECTURE["WN_config"], **result["WN_config"]}
    for name, value in (("n_flows", n_flows), ("n_group", n_group)):
        if value is not None:
            result[name] = value
    for name, value in (("n_layers", layers), ("n_channels", channels)):
        if value is not None:
            result["WN_config"][name] = value
    return result


def _read_json(config: str) -> dict[str, Any]:
    text = config
    if not config.lstrip().startswith("{"):
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise options.UsageError(f"--config {options.describe(config, error)}") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise options.UsageError(f"--config is not valid JSON: {error}") from error
    options.require(isinstance(value, dict), f"--config must be a JSON object; got {type(value).__name__}")
    return dict(value)
