"""``fastflow train``: a vocoder from a folder of audio, or a flow of images from a folder of those."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fastflow.cli import options

if TYPE_CHECKING:
    from fastflow.models import ImageFlow, Vocoder
    from fastflow.train import ImageDataset, SegmentDataset

# The published sizes, but for WaveGlow the bundled model's; a configuration's `model` and the options below replace
# parts of them.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "WaveGlow": {
        "n_mel_channels": 80,
        "n_flows": 8,
        "n_group": 128,
        "n_early_every": 4,
        "n_early_size": 0,
        "WN_config": {"n_layers": 4, "n_channels": 128, "kernel_size": 3},
        "conditioning": "group",
    },
    "SqueezeWave": {
        "n_mel_channels": 80,
        "n_flows": 12,
        "n_audio_channel": 128,
        "n_early_every": 2,
        "n_early_size": 16,
        "WN_config": {"n_layers": 8, "n_channels": 256, "kernel_size": 3},
    },
    "FloWaveNet": {"in_channel": 1, "cin_channel": 80, "n_block": 8, "n_flow": 6, "n_layer": 2, "block_per_split": 4},
    "Glow": {"in_channels": 3, "n_levels": 3, "n_steps": 32, "hidden_channels": 512},
    "RealNVP": {"in_channels": 3, "n_levels": 3, "hidden_channels": 64},
}
OF_IMAGES = {"Glow", "RealNVP"}
OF_AUDIO_ONLY, OF_IMAGES_ONLY = ("segment",), ("bits",)  # options

SIZE_OPTIONS = {"n_flows": "n-flows", "n_group": "n-group", "n_layers": "layers", "n_channels": "channels"}


def _read_config(context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, Any]:
    """Make the options of a configuration the defaults of this run, and return the rest: `model`, `data`, `output`."""
    if text is None:
        return {}
    values = _parse(text)
    own: dict[str, Any] = {name: values.pop(name) for name in ("model", "data", "output") if name in values}
    known = {p.name for p in context.command.params if isinstance(p, click.Option)} - {
        "config",
        "more_data",
        "output",
        "help",
    }
    unknown = sorted(str(name) for name in values.keys() - known)
    keys = ", ".join(sorted({"model", "data", "output", *known}))
    options.require(not unknown, f"--config: unknown {', '.join(unknown)}; the keys are {keys}")
    values = {name: value for name, value in values.items() if value is not None}
    for option in context.command.params:
        if isinstance(option, click.Option) and option.name in values:
            _check_type(option, values[option.name])
    context.default_map = values
    return own


def _check_type(option: click.Option, value: Any) -> None:
    """UsageError unless a value of a configuration is of the option's type; YAML takes 1e-3 for a text."""
    if option.is_flag:
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        fits, wanted = type(value) is int, "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        fits, wanted = isinstance(value, (int, float, str)) and not isinstance(value, bool), "a number"
    else:
        fits, wanted = isinstance(value, str), "a text"
    options.require(fits, f"--config: `{option.name}` must be {wanted}; got {value!r}")


def _given(name: str) -> bool:
    """Whether an option was on the command line itself."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _refuse_others(name: str) -> None:
    """UsageError for an option, or key of the configuration, that says nothing to the model of this name."""
    for option in OF_AUDIO_ONLY if name in OF_IMAGES else OF_IMAGES_ONLY:
        source = click.get_current_context().get_parameter_source(option)
        kinds = "models of audio" if name in OF_IMAGES else "models of images"
        options.require(source is click.core.ParameterSource.DEFAULT, f"`--{option}` is for {kinds}; got a {name}")


@click.command()
@click.argument("data", metavar="[DATA...]", nargs=-1, type=options.TEXT)
@click.option(
    "--data", "more_data", metavar="PATH", type=options.TEXT, multiple=True, help="The same as DATA; may be repeated."
)
@click.option("-o", "--output", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=options.TEXT,
    metavar="YAML",
    is_eager=True,
    callback=_read_config,
    help="A file, or its text: `model` with a name and its arguments, `data`, `output`, and any option below.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps.")
@click.option("--minutes", type=float, help="Stop after this much training time.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Segments or images per step."
)
@click.option("--segment", type=click.IntRange(min=1), default=8192, show_default=True, help="Samples per segment.")
@click.option("--bits", type=click.IntRange(1, 8), default=8, show_default=True, help="Bits of an image's values.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak learning rate of Adam.")
@click.option("--clip", type=float, default=10.0, show_default=True, help="Largest gradient norm.")
@click.option("--ema", type=float, default=0.999, show_default=True, help="Decay of the averaged weights.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of weights and batches.")
@click.option("--n-flows", type=click.IntRange(min=1), help="Number of flows.")
@click.option("--n-group", type=click.IntRange(min=2), help="Samples that one flow position holds.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers of each WN.")
@click.option("--channels", type=click.IntRange(min=1), help="Channels of each WN.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of matrix products.",
)
@click.option(
    "--backprop",
    type=click.Choice(["autograd", "recompute", "invert"]),
    default="autograd",
    show_default=True,
    help="Where a step's backward has activations from: kept, computed again from inputs, or from outputs.",
)
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp"]),
    default="ddp",
    show_default=True,
    help="What each of torchrun's processes has: the model, or a share of it.",
)
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes for the data.")
@click.option("--validation", type=options.TEXT, help="Data whose loss is logged at every save.")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="TensorBoard's files; with --validation, also what the model makes.",
)
@click.option("--save-every", type=float, default=5.0, show_default=True, metavar="MINUTES", help="Between two saves.")
@click.option("--keep", type=click.IntRange(min=0), default=0, show_default=True, help="Saves to keep beside OUT.")
@click.option(
    "--from-checkpoint",
    type=options.TEXT,
    metavar="MODEL",
    help="Begin with the weights of a vocoder's checkpoint, of any published form, or bundled; the sizes are its own.",
)
@options.device
@click.option("--resume", is_flag=True, help="Go on from OUT's .state.pt.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def train(
    data: tuple[str, ...],
    more_data: tuple[str, ...],
    output: Path | None,
    config: dict[str, Any],
    steps: int | None,
    minutes: float | None,
    batch_size: int,
    segment: int,
    bits: int,
    lr: float,
    clip: float,
    ema: float,
    seed: int,
    n_flows: int | None,
    n_group: int | None,
    layers: int | None,
    channels: int | None,
    precision: str,
    backprop: str,
    parallel: str,
    workers: int,
    validation: str | None,
    tensorboard: Path | None,
    save_every: float,
    keep: int,
    from_checkpoint: str | None,
    device: str,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train a WaveGlow, SqueezeWave or FloWaveNet on audio, or a Glow or RealNVP on images.

    DATA are files, directories (searched recursively) or quoted globs of

    \b
    audio   wav, flac, lists of files (.txt, .csv), lhotse manifests (.jsonl, .jsonl.gz)
    images  image files, .npy and .npz: uint8 [N, C, H, W] or [N, H, W]

    Writes OUT.safetensors (averaged weights and configuration), OUT.json (settings, time, loss) and
    OUT.state.pt (for --resume), each replaced every five minutes. Ctrl-C saves and stops.

    `torchrun --nproc-per-node N -m fastflow train ...` trains in N processes, on as many GPUs with --device cuda;
    with --parallel fsdp each of them holds an Nth of a large model.
    """
    data, output = data + more_data or _listed(config.get("data", ())), output or _path(config.get("output"))
    options.require(bool(data), "give DATA, as arguments, by --data or in --config")
    if output is None:
        raise options.UsageError("give -o OUT.safetensors, or `output` in --config")
    if _given("steps") != _given("minutes"):  # one of them replaces whichever the configuration has
        steps, minutes = (steps, None) if _given("steps") else (None, minutes)
    options.require((steps is None) != (minutes is None), "give --steps or --minutes, one of them")
    options.require(minutes is None or 0 < minutes < math.inf, f"`--minutes` must be > 0; got {minutes}")
    for name, value in (("lr", lr), ("clip", clip), ("save-every", save_every)):
        options.require(0 < value < math.inf, f"`--{name}` must be > 0; got {value:g}")
    options.require(0 <= ema < 1, f"`--ema` must be at least 0 and less than 1; got {ema:g}")
    remedy = "--resume goes on from it, --overwrite replaces it"
    options.check_output_file("OUT", output, ".safetensors", resume or overwrite, remedy)
    options.check_device(device)

    import torch

    from fastflow.nn.backprop import ReconstructionError
    from fastflow.train import DataError, TrainingError
    from fastflow.train import train as run
    from fastflow.train.world import World, launched

    torch.manual_seed(seed)
    sizes = {"n_flows": n_flows, "n_group": n_group, "n_layers": layers, "n_channels": channels}
    model = _model(config, sizes, from_checkpoint)
    _refuse_others(type(model).__name__)
    model.backprop = backprop
    try:
        dataset = _dataset(model, data, segment, bits, seed)
        held_out = _dataset(model, [validation], segment, bits, seed) if validation else None
    except DataError as error:
        raise options.UsageError(str(error)) from error
    facts = failure = None
    with launched(device) as own:
        writes = World.current().writes
        if writes:
            for _, reason in [*dataset.skipped, *(held_out.skipped if held_out else [])]:
                options.warn(f"skipped: {reason}")
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            click.echo(f"{millions:.2f} million parameters, {dataset.summary()}", err=True)
        try:
            facts = run(
                model.to(own),
                dataset,
                output,
                steps=steps,
                minutes=minutes,
                batch_size=batch_size,
                lr=lr,
                clip=clip,
                ema=ema,
                precision=precision,
                workers=workers,
                parallel=parallel,
                validation=held_out,
                tensorboard=tensorboard,
                save_every=save_every,
                keep=keep,
                from_data=from_checkpoint is None,
                resume=resume,
                overwrite=overwrite,
            )
        except ReconstructionError as error:
            failure = str(error)
            if output.with_suffix(".state.pt").exists():
                failure += "; --resume with --backprop recompute goes on from the last save"
        except (TrainingError, DataError) as error:
            failure = str(error)
        except KeyboardInterrupt:
            if writes:
                options.warn(f"stopped; --resume goes on from {output}")
    # An exit inside of `launched` would hold on to what uses the group of processes while it is taken down.
    if failure is not None:
        raise options.Failure(failure)
    if facts is None:
        sys.exit(130)
    if writes:
        progress = facts["progress"]
        shown = options.printable(str(output))
        click.echo(f"{shown}: {progress['step']} steps, {progress['seconds']:.0f} s, loss {progress['loss']:.4f}")


def _dataset(
    model: Vocoder | ImageFlow, sources: Sequence[str], segment: int, bits: int, seed: int
) -> SegmentDataset | ImageDataset:
    """The data that `model` learns from."""
    from fastflow.audio import front_end
    from fastflow.models import ImageFlow
    from fastflow.train import ImageDataset, SegmentDataset

    if isinstance(model, ImageFlow):
        return ImageDataset(sources, channels=model.in_channels, n_bits=bits, seed=seed)
    bands = model.n_mel_channels
    options.require(bands == 80, f"the model must take 80 mel bands: the front end makes 80 mel bands; got {bands}")
    return SegmentDataset(sources, segment=segment, seed=seed, mel=front_end(model))


def _listed(data: Any) -> tuple[str, ...]:
    names = [data] if isinstance(data, str) else data
    fits = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    options.require(fits, f"--config: `data` must be a name or a list of names; got {data!r}")
    return tuple(names)


def _path(output: Any) -> Path | None:
    options.require(output is None or isinstance(output, str), f"--config: `output` must be a name; got {output!r}")
    return None if output is None else Path(output)


def _architecture(model: Any, sizes: dict[str, int | None]) -> tuple[str, dict[str, Any]]:
    """A model's name and arguments: its default architecture, changed by --config, then by single options."""
    options.require(isinstance(model, dict), f"--config: `model` must be an object; got {model!r}")
    given = dict(model)
    name = given.pop("name", "WaveGlow")
    options.require(
        isinstance(name, str) and name in ARCHITECTURES,
        f"--config: the model's `name` must be one of {', '.join(ARCHITECTURES)}; got {name!r}",
    )
    default = ARCHITECTURES[name]
    result = {**default, **given}
    if "WN_config" in default:
        options.require(isinstance(result["WN_config"], dict), "--config: `WN_config` must be an object")
        result["WN_config"] = {**default["WN_config"], **result["WN_config"]}
    for key, value in sizes.items():
        place = result.get("WN_config", {}) if key in ("n_layers", "n_channels") else result
        if value is not None:
            options.require(key in place, f"`--{SIZE_OPTIONS[key]}` is no argument of {name}")
            place[key] = value
    return name, result


def _model(config: dict[str, Any], sizes: dict[str, int | None], checkpoint: str | None) -> Vocoder | ImageFlow:
    """The model to begin with: a checkpoint's, or a new one with random weights."""
    import fastflow.models

    if checkpoint is not None:
        given = [f"`--{SIZE_OPTIONS[key]}`" for key, value in sizes.items() if value is not None]
        given += ["`model` in --config"] if "model" in config else []
        options.require(not given, f"--from-checkpoint: the sizes are the checkpoint's; got {', '.join(given)} too")
        return options.load_model(checkpoint, "cpu", "float32")
    name, architecture = _architecture(config.get("model", {}), sizes)
    made = getattr(fastflow.models, name)
    known = list(inspect.signature(made).parameters)
    unknown = sorted(architecture.keys() - set(known))
    options.require(not unknown, f"--config: unknown {', '.join(unknown)}; the keys are {', '.join(known)}")
    try:
        return cast("Vocoder | ImageFlow", made(**architecture))
    except (TypeError, ValueError, RuntimeError) as error:
        raise options.UsageError(options.describe("cannot build this model", error)) from error


def _parse(config: str) -> dict[str, Any]:
    """A configuration, from its text or from the file that `config` names."""
    import yaml

    text = config
    if not config.lstrip().startswith("{"):
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise options.UsageError(f"--config {options.describe(config, error)}") from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise options.UsageError(f"--config is not valid YAML: {error}") from error
    options.require(isinstance(value, dict), f"--config must be a YAML mapping; got {type(value).__name__}")
    return dict(value)
