"""``fastflow bench``: how fast this machine is, in two minutes; or what a change made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastflow.cli import options

if TYPE_CHECKING:
    import torch

BACKENDS = tuple(name for name in options.BACKENDS if name not in ("auto", "reference"))


@click.command()
@options.device
@click.option("--dtype", type=click.Choice(options.DTYPES), multiple=True, default=["float32"], show_default=True)
@click.option("--backend", type=click.Choice(BACKENDS), multiple=True, help="Default: all that can run here.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU; default: PyTorch's.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of each variant.")
@click.option("--minutes", type=click.FloatRange(0), default=2.0, show_default=True, help="Start no more after this.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows, too.")
@click.option("--compare", "revision", type=options.TEXT, metavar="REV", help="Time a commit beside the working tree.")
@click.option("--tiny", is_flag=True, help="Toy sizes, to see that everything runs.")
def bench(
    device: str,
    dtype: tuple[str, ...],
    backend: tuple[str, ...],
    threads: int | None,
    rounds: int,
    minutes: float,
    json_file: Path | None,
    revision: str | None,
    tiny: bool,
) -> None:
    """Check and time the kernels beside plain PyTorch, at the sizes of published models.

    Prints a table in Markdown, to paste into an issue. The variants of a case take turns, in one process; each is
    checked against float64 first (half precision against float32), and gets no time where it is wrong: the exit status
    is then 1. One variant runs twice, for the noise.

    --compare builds and runs a commit of this checkout, and the working tree as it is, in folders and processes of
    their own, taking turns, and prints the ratios. --minutes counts from when both are built.
    """
    options.check_device(device)
    for name in backend:
        options.check_backend(name)
    if json_file is not None:
        options.check_output_file("--json", json_file, ".json", True, "")

    import torch

    from fastflow.bench.check import no_tf32

    no_tf32()
    if threads is not None:
        torch.set_num_threads(threads)
    if revision is not None:
        wrong, stored = _compare(revision, torch.device(device), dtype, backend, rounds, minutes, tiny)
    else:
        wrong, stored = _bench(torch.device(device), dtype, backend, rounds, minutes, tiny)
    if json_file is not None:
        json_file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if wrong:
        raise options.Failure("no time for " + "; ".join(wrong))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _bench(
    device: torch.device,
    dtypes: tuple[str, ...],
    backends: tuple[str, ...],
    rounds: int,
    minutes: float,
    tiny: bool,
) -> tuple[list[str], list[dict[str, Any]]]:
    from dataclasses import asdict

    import torch

    from fastflow.bench import quick, rows

    about = rows.about(device, rows.commit())
    found = []
    able = backends or quick.able(device)
    for row in quick.run(device, dtypes, able, rounds=rounds, seconds=60 * minutes, tiny=tiny, say=_say):
        row.about, row.threads = about, torch.get_num_threads()
        found.append(row)
    click.echo(quick.markdown(found))
    wrong = [f"{row.op} on {row.variant} ({row.refused})" for row in found if row.refused]
    return wrong, [asdict(row) for row in found]


def _compare(
    revision: str,
    device: torch.device,
    dtypes: tuple[str, ...],
    backends: tuple[str, ...],
    rounds: int,
    minutes: float,
    tiny: bool,
) -> tuple[list[str], list[dict[str, Any]]]:
    from dataclasses import asdict

    import torch

    from fastflow.bench import compare

    spec = {"device": str(device), "backends": backends, "threads": torch.get_num_threads(), "tiny": tiny}
    try:
        found = list(compare.compare(revision, spec, dtypes, rounds=rounds, seconds=60 * minutes, say=_say))
    except compare.CompareError as error:
        raise options.UsageError(f"`--compare {revision}`: {error}") from error
    click.echo(compare.markdown(revision, found))
    wrong = [f"{one.row.op}, {one.row.case}, {one.row.dtype} ({one.refused})" for one in found if one.wrong]
    return wrong, [asdict(one) for one in found]
