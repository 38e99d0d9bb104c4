"""What a run leaves on disk, and how it goes on from there. Every file appears whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.files import check_target, write_whole
from fastflow.models import ImageFlow, Vocoder

from .settings import Progress, TrainingError
from .world import World

log = logging.getLogger("fastflow")


def state_path(output: Path) -> Path:
    """Where the state to resume from lies."""
    return output.with_suffix(".state.pt")


def check_output(output: Path, resume: bool, overwrite: bool) -> None:
    """Raise TrainingError for an output that cannot be, must not be, or cannot be resumed."""
    if output.suffix != ".safetensors":
        raise TrainingError(f"`output` must end in .safetensors; got {output}")
    for path in (output, output.with_suffix(".json"), state_path(output)):
        check_target(path, overwrite=True, error=TrainingError)
        if os.path.lexists(path) and not (resume or overwrite):
            raise TrainingError(f"{path} exists; resume=True goes on from it, overwrite=True replaces it")
    if resume and not state_path(output).is_file():
        raise TrainingError(f"nothing to resume: {state_path(output)} does not exist")


def state_of(
    model: Vocoder | ImageFlow,
    average: list[Tensor],
    tools: dict[str, Any],
    progress: Progress,
    kept: dict[str, Any],
) -> dict[str, Any]:
    """All that `load_state` needs; `tools` are the optimizer and what else has a state dict."""
    return {
        "settings": kept,
        "config": json.dumps(model.config),
        "model": model.state_dict(),
        "average": average,
        **{name: tool.state_dict() for name, tool in tools.items()},
        "progress": asdict(progress),
    }


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what `state_of` returned."""
    with write_whole(path, overwrite=True, error=TrainingError) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what its writer makes of a full disk
            raise TrainingError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(
    path: Path,
    model: Vocoder | ImageFlow,
    average: list[Tensor],
    tools: dict[str, Any],
    kept: dict[str, Any],
    world: World,
) -> Progress:
    """Put what `save_state` wrote into its arguments, and return the progress. Warns of settings that have changed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, settings, progress = json.loads(state["config"]), dict(state["settings"]), Progress(**state["progress"])
        expected = json.loads(json.dumps(model.config))
        if config == expected:
            current = model.state_dict()
            model.load_state_dict({key: world.share(saved, current[key]) for key, saved in state["model"].items()})
            for number, values in state["optimizer"]["state"].items():
                for name, saved in values.items():
                    values[name] = world.share(saved, average[number])
            for name, tool in tools.items():
                if state[name]:  # a scaler that was not in use has none
                    tool.load_state_dict(state[name])
            with torch.no_grad():
                for mean, saved in zip(average, state["average"], strict=True):
                    mean.copy_(world.share(saved, mean))
    except Exception as error:  # torch.load raises many types, none of them documented, and long advice
        raise TrainingError(
            f"cannot resume from {path}: it is damaged or no state of fastflow train ({type(error).__name__})"
        ) from error
    if config != expected:
        raise TrainingError(f"cannot resume from {path}: it holds a model of config {config}; got {expected}")
    changed = [  # what an older version's state does not say is not known to have changed
        f"{name} {settings[name]} is now {value}" for name, value in kept.items() if settings.get(name, value) != value
    ]
    if changed:
        log.warning("the run that %s resumes had other settings: %s", path, ", ".join(changed))
    return progress


def keep_only(output: Path, saves: list[int]) -> None:
    """Keep weights and state of this save, the last of `saves`, beside the output as NAME.stepN, and of the others.

    All that are not of these steps go: they are too old, or of an earlier run, or of one that went on from a state that
    was gone back from.

    Raises:
        TrainingError: a file cannot be written or removed.
    """
    for path in (output, state_path(output)):
        suffix = path.name.removeprefix(output.stem)
        beside = f"{output.stem}.step{{}}{suffix}"
        with write_whole(path.with_name(beside.format(saves[-1])), overwrite=True, error=TrainingError) as temporary:
            shutil.copyfile(path, temporary)
        pattern = re.compile(re.escape(output.stem) + r"\.step(0|[1-9]\d*)" + re.escape(suffix))
        for old in [p for p in output.parent.iterdir() if (m := pattern.fullmatch(p.name)) and int(m[1]) not in saves]:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                raise TrainingError(f"cannot remove {old}: {error.strerror}") from error


class Averages:
    """Exponential averages of parameters, which can take their places.

    Args:
        parameters: what is averaged.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """One step towards the parameters as they are."""
        for mean, parameter in zip(self.values, self.parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    def __enter__(self) -> None:
        """The averages in the parameters, until the `with` block ends."""
        self._trained = [p.detach().clone() for p in self.parameters]
        self.put(self.values)

    def __exit__(self, *_: object) -> None:
        self.put(self._trained)
        del self._trained

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        """Set the parameters to `values`."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
