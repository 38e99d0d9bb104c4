"""The picture of `fastflow verify`: errors and times of every block, beside each other."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.audio.errors import AudioError
from fastflow.cli import options
from fastflow.files import write_whole
from fastflow.stacks.compare import BOUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastflow.stacks.compare import Row

_WIDTH_INCHES = 11
_INCHES_PER_ROW = 0.3
_DPI = 120
_SMALLEST = 1e-9  # an error that is drawn: the axis is logarithmic


def draw(path: Path, title: str, rows: list[Row], overwrite: bool) -> None:
    """Write a PNG with a line for each block that ran and for the whole, the first at the top."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.error is not None][::-1]
    figure = Figure(figsize=(_WIDTH_INCHES, 1.6 + _INCHES_PER_ROW * len(rows)), dpi=_DPI, layout="constrained")
    times, errors = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, fontsize="small")
    _draw_times(times, rows)
    _draw_errors(errors, rows)
    times.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    try:
        with write_whole(path, overwrite=overwrite, error=AudioError) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except AudioError as error:
        raise options.Failure(str(error)) from error


def _draw_times(ax: Axes, rows: list[Row]) -> None:
    original, fast = ([statistics.median(t) for t in times] for times in zip(*map(_times, rows), strict=True))
    ax.hlines(range(len(rows)), fast, original, color="tab:grey", linewidth=1)
    ax.scatter(original, range(len(rows)), c="tab:grey", s=28, label="original")
    ax.scatter(fast, range(len(rows)), c="tab:blue", s=28, label="fast")
    ax.set_xscale("log")
    ax.set_xlabel("Time of one call (ms, median)")
    ax.legend(fontsize="small")


def _times(row: Row) -> tuple[list[float], list[float]]:
    return row.original_ms, row.fast_ms


def _draw_errors(ax: Axes, rows: list[Row]) -> None:
    sizes = [max(_SMALLEST, min(row.error or 0.0, 1e3)) for row in rows]
    colours = ["tab:blue" if row.within else "tab:red" for row in rows]
    ax.scatter(sizes, range(len(rows)), c=colours, s=16)
    ax.axvline(BOUND, color="tab:red", linewidth=0.8, label=f"bound, {BOUND:g}")
    ax.set_xscale("log")
    ax.set_xlabel("Error (root mean square, of the original's output)")
    ax.legend(fontsize="small")
