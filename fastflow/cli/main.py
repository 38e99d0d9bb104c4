"""``fastflow``: finds the command, imports its file and runs it."""

from __future__ import annotations

import importlib
from typing import Any

import click

from fastflow._version import __version__

# command name -> what it is for, so that `fastflow --help` need not import any command
COMMANDS = {
    "vocode": "Turn mel spectrograms, or audio by way of its mel spectrogram, into audio.",
    "convert": "Rewrite a published checkpoint as a safe .safetensors file.",
    "train": "Train a vocoder on audio, or an image flow on images: folders, lists, manifests, arrays.",
    "verify": "Hold a model's fast form against the original, side by side: errors and times.",
    "bench": "Time the kernels on this machine beside plain PyTorch; compare two commits.",
    "info": "Show versions, what is compiled and which backends can run.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported from ``fastflow.cli.<name>`` when they are first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"fastflow.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)  # 128 + SIGINT, as shells say it; click's own answer is 1

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastflow")
def main() -> None:
    """Fast flow-based vocoders: mel spectrograms to speech."""
