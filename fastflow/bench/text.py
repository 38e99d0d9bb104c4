"""Rows as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, COPY, RATE

OURS = "fastflow"


def figure(value: float) -> str:
    """About three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table whose first `left` columns are words."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def noise(rows: Sequence[Row]) -> list[float]:
    """Return by how much each variant's twin differs from it, as a fraction of the smaller median."""
    by_name = {(row.key(), row.threads): row for row in rows}
    found = []
    for row in rows:
        *place, variant = row.key()
        twin = by_name.get(((*place, variant + AGAIN), row.threads))
        if twin and twin.median_ms and row.median_ms:
            found.append(abs(twin.median_ms - row.median_ms) / min(twin.median_ms, row.median_ms))
    return found


def noise_line(rows: Sequence[Row]) -> str:
    """Say how far the same case differs from itself."""
    found = noise(rows)
    if not found:
        return ""
    return f"Noise: the same case timed against itself differs by at most {max(found):.1%}."


def case_table(rows: Sequence[Row]) -> str:
    """Return one case's rows as a table; ratios only where ours is right."""
    first = rows[0]
    ours = next((row for row in rows if row.variant == OURS), None)
    lines = []
    for row in rows:
        if row.variant in (RATE, COPY) or row.variant.endswith(AGAIN):
            continue
        if row.median_ms is None or row.min_ms is None:
            lines.append([row.variant, row.refused, *[""] * 8])
            continue
        ratio = ""
        if ours and ours.median_ms and ours.min_ms:
            ratio = f"{row.median_ms / ours.median_ms:.2f} ({row.min_ms / ours.min_ms:.2f})"
        lines.append(
            [
                row.variant,
                f"{row.median_ms:.1f} [{row.p20_ms:.1f}, {row.p80_ms:.1f}]",
                f"{row.min_ms:.1f}",
                ratio,
                f"{row.times_real_time:.2f}" if row.samples else "",
                f"{row.fraction:.2f}",
                f"{row.fraction_of_copy:.3f}",
                f"{row.peak_mb:.0f}",
                "" if row.first_ms is None else f"{row.first_ms / 1e3:.1f}",
                "" if row.error is None else f"{row.error:.1e}",
            ]
        )
    head = ["variant", "ms, median [20 %, 80 %]", "ms, least", "times as long as ours", "times real time"]
    head += ["of products", "of a copy", "peak MB", "first call, s", "error"]
    about = f"{first.case}, {first.dtype}, {first.threads} threads, load {first.load:.1f}, "
    about += f"matrix products {first.rate / 1e9:.0f} GFLOP/s, copy {first.copy / 1e9:.1f} GB/s"
    text = f"{about}\n\n{table(head, lines)}"
    if ours and ours.refused:
        text += f"\nNo ratios: {OURS} is wrong.\n"
    if said := noise_line(rows):
        text += f"\n{said}\n"
    return text
