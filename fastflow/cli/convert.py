"""``fastflow convert``: any checkpoint that fastflow reads, as a .safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from fastflow.cli import options


@click.command()
@click.argument("source", metavar="IN", type=options.TEXT)
@click.argument("output", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(options.DTYPES), help="Of the weights; default: as in the file.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def convert(source: str, output: Path, dtype: str | None, overwrite: bool) -> None:
    """Rewrite a published checkpoint as a safe .safetensors file with its configuration inside.

    IN is any file that loads: pickled modules, state dicts, NeMo archives, safetensors. Code in
    it is never run: a pickle with more than tensors, plain containers and the published classes is refused.
    """
    options.check_output_file("OUT", output, ".safetensors", overwrite, "--overwrite replaces it")

    import torch

    from fastflow import checkpoints

    try:
        checkpoints.convert(source, output, dtype=None if dtype is None else getattr(torch, dtype), overwrite=overwrite)
    except (ValueError, OSError) as error:
        raise options.Failure(options.describe(source, error)) from error
    click.echo(f"{options.printable(str(output))}: {output.stat().st_size / 1e6:.1f} MB")
