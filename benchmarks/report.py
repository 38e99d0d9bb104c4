"""From the stored rows to what people read: the README's tables, and one HTML page with plots and sounds.

    python -m benchmarks.report                       # writes README.md's generated part and report/index.html
    python -m benchmarks.report --results FOLDER --readme FILE --out FILE.html

The page needs nothing else: plots are SVG inside it, sounds are FLAC inside it. The sounds are the bundled model's.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastflow.bench import rows
from fastflow.bench.rows import SAMPLING_RATE, Row
from fastflow.bench.text import OURS, case_table, figure, noise_line, table
from fastflow.bench.timing import AGAIN, COPY, RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- begin benchmarks: made by `make report` -->\n", "<!-- end benchmarks -->\n"
WHOLE = ("cpu", "infer", "stacks")
"""The parts whose cases are compared variant by variant."""
OTHER = "HiFi-GAN"
"""Begins the names of variants that compute something else."""
OF_OTHERS = f"{OTHER} is another model, and no flow: a yardstick, on the same mel."


def read_all(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of each machine."""
    machines = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    return {
        name: [row for file in sorted(path.glob("*.json")) for row in rows.read(file)]
        for name, path in machines.items()
    }


def spoken(found: Iterable[Row]) -> list[Row]:
    """Return the rows that a reader compares: without rates and twins."""
    return [row for row in found if row.variant not in (RATE, COPY) and not row.variant.endswith(AGAIN)]


def groups(found: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each case in each dtype, on as many threads."""
    made: dict[tuple[object, ...], list[Row]] = {}
    for row in found:
        made.setdefault((*row.key()[:-1], row.threads), []).append(row)
    return list(made.values())


def is_other(row: Row) -> bool:
    return row.variant.startswith(OTHER)


# Tables


def wide(found: Sequence[Row]) -> str:
    """Return a table of milliseconds, a line for each case and a column for each variant; the fastest are bold."""
    variants = list(dict.fromkeys(row.variant for row in spoken(found)))
    variants.sort(key=lambda name: (not name.startswith(OURS), name.startswith(OTHER)))
    lines = []
    for group in groups(spoken(found)):
        by_variant = {row.variant: row for row in group}
        times = [row.median_ms for row in group if row.median_ms and not is_other(row)]
        first = group[0]
        threads = f"{first.threads} threads" if first.threads else ""
        cells = [", ".join(filter(None, [first.case, first.dtype, threads]))]
        for variant in variants:
            row = by_variant.get(variant)
            if row is None:
                cells.append("")
            elif row.median_ms is None:
                cells.append(row.refused)
            else:
                said = figure(row.median_ms)
                cells.append(f"**{said}**" if row.median_ms == min(times, default=0) else said)
        lines.append(cells)
    return table(["ms", *variants], lines)


def memory_table(found: Sequence[Row]) -> str:
    """Return a table of training steps against the number of flows.

    What autograd keeps after the forward; what a step takes at most besides weights and gradients; the time by the
    clock, and by the processor where other programs ran as well.
    """
    lines = []
    for row in sorted(found, key=lambda row: (row.dtype, row.samples, row.flows)):
        said = figure(row.median_ms) if row.median_ms else row.refused
        used = figure(row.cpu_ms) if row.cpu_ms else ""
        size = [row.dtype, f"{row.samples:,}", str(row.flows)]
        lines.append([*size, row.variant, figure(row.kept_mb), figure(row.extra_mb), said, used])
    return table(["dtype", "samples", "flows", "variant", "kept, MB", "peak, MB", "ms", "processor ms"], lines, 4)


def operations_table(found: Sequence[Row]) -> str:
    lines = []
    for group in groups(spoken(found)):
        eager = next((row.median_ms for row in group if row.variant == "eager"), None)
        for row in group:
            what = [f"`{row.op}`", row.case, row.dtype, row.variant]
            if row.median_ms is None:
                lines.append([*what, row.refused, *[""] * 8])
                continue
            lines.append(
                [
                    *what,
                    f"{figure(row.median_ms)} [{figure(row.p20_ms or 0)}, {figure(row.p80_ms or 0)}]",
                    row.cache,
                    "" if row.warm_ms is None else figure(row.warm_ms),
                    "" if row.first_ms is None else figure(row.first_ms),
                    "" if not eager else f"{eager / row.median_ms:.2f}",
                    f"{row.fraction:.2f}",
                    f"{row.fraction_of_copy:.2f}",
                    f"{row.extra_mb:.0f}",
                    "" if row.error is None else f"{row.error:.1e}",
                ]
            )
    head = ["operation", "size", "dtype", "variant", "ms, median [20 %, 80 %]", "cache", "ms, warm", "first call, ms"]
    head += ["times as fast as eager", "of products", "of a copy", "extra MB", "error"]
    return table(head, lines, 4)


def measured_on(found: Sequence[Row]) -> str:
    """Say what the rows were measured on: machine, versions, commits, dates."""
    facts: dict[str, list[str]] = {}
    for row in found:
        for name, value in row.about.items():
            if value and value != "none":
                facts.setdefault(name, []).append(value[:10] if name == "date" else value)
    said = {name: ", ".join(sorted(set(values))) for name, values in facts.items()}
    order = ["device", "cores", "driver, clock, power", "cuda", "torch", "triton", "onnxruntime", "openvino"]
    order += ["clock", "commit", "date", "note"]
    return "; ".join(f"{name} {said[name]}" for name in order if name in said)


def readme_part(results: Path) -> str:
    """Return the generated part of the README."""
    text = [
        "Milliseconds, medians; the variants of a line took turns in one run, each was checked, the fastest is bold.",
        '"Eager" and "compile" are the published arithmetic in PyTorch; "kept": with allocations kept from the system.',
        "`make report` makes a page of all rows with plots and sounds. On your machine, in two minutes:",
        "",
        "```console",
        "fastflow bench",
        "```",
        "",
    ]
    for name, found in read_all(results).items():
        for part in WHOLE:
            mine = [row for row in found if row.part == part]
            if mine:
                text += [f"`{name}`, {part} ({measured_on(mine)}):", "", wide(mine)]
                text += filter(None, [OF_OTHERS if any(map(is_other, mine)) else "", noise_line(mine)])
                text.append("")
        mine = [row for row in found if row.part == "memory"]
        if mine:
            text += [f"`{name}`, a training step ({measured_on(mine)}):", "", memory_table(mine)]
    return "\n".join(text).rstrip() + "\n"


def generated(readme: str, results: Path = RESULTS) -> str:
    """Return the README's text with its generated part made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{readme_part(results)}\n{END}{after}"


# Plots


class Plot(NamedTuple):
    title: str
    svg: str


def draw(title: str, x: str, y: str, lines: dict[str, list[tuple[float, float]]]) -> Plot:
    """Draw lines over a logarithmic x, whose ticks are the values that there are."""
    values = sorted({point[0] for points in lines.values() for point in points})

    def fill(axes: Axes) -> None:
        for (name, points), marker in zip(lines.items(), "osD^v<>pP*Xdh" * 4, strict=False):
            width = 2.5 if name.startswith(OURS) else 1.2
            axes.plot(*zip(*sorted(points), strict=True), marker=marker, linewidth=width, markersize=5, label=name)
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:.3g}" for value in values])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True, linewidth=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    return figure_of(title, fill, (8, 4))


def draw_bars(title: str, x: str, bars: dict[str, dict[str, float]]) -> Plot:
    """Draw a group of bars for each name, a bar for each variant."""
    variants = list(dict.fromkeys(variant for group in bars.values() for variant in group))

    def fill(axes: Axes) -> None:
        height = 0.8 / len(variants)
        for i, variant in enumerate(variants):
            places = [number + i * height for number, group in enumerate(bars.values()) if variant in group]
            axes.barh(places, [group[variant] for group in bars.values() if variant in group], height, label=variant)
        axes.set_yticks([number + 0.4 - height / 2 for number in range(len(bars))], list(bars), fontsize=7)
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel(x)
        axes.grid(True, axis="x", linewidth=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    return figure_of(title, fill, (9, 1.2 + 0.22 * len(bars) * max(1, len(variants) / 2)))


def figure_of(title: str, fill, size: tuple[float, float]) -> Plot:  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        picture, axes = plt.subplots(figsize=size)
        fill(axes)
        axes.set_title(title, fontsize=10)
        file = io.StringIO()
        picture.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(picture)
    return Plot(title, file.getvalue()[file.getvalue().index("<svg") :])


def plots(found: Sequence[Row]) -> list[Plot]:
    """Return time against length, the fraction of the limit of each operation, memory against flows."""
    made = []
    timed = [row for row in spoken(found) if row.median_ms]
    lengths: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in timed:
        if row.part in ("cpu", "infer") and row.case.startswith("WaveGlow"):
            batch = (re.findall(r"batch (\d+)", row.case) or ["1"])[0]
            title = f"WaveGlow-256, {row.dtype}, batch {batch}"
            seconds = row.samples / SAMPLING_RATE / int(batch)
            lengths.setdefault(title, {}).setdefault(row.variant, []).append((seconds, 1 / row.times_real_time))
    for title, lines in lengths.items():
        made.append(draw(f"Time against length: {title}", "seconds of audio", "time / duration of the audio", lines))
    for dtype in dict.fromkeys(row.dtype for row in timed):
        bars: dict[str, dict[str, float]] = {}
        for row in timed:
            if row.part in ("ops", "bench") and row.dtype == dtype and row.fraction_of_limit:
                bars.setdefault(f"{row.op}: {row.case}", {})[row.variant] = row.fraction_of_limit
        if bars:
            about = "least time at this machine's rates of products and copies / time (naive count: 1 is no bound)"
            made.append(draw_bars(f"Fraction of the limit, {dtype}", about, bars))
    for column, name in (("extra_mb", "Peak memory"), ("kept_mb", "What autograd keeps")):
        steps: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in found:
            if row.flows and getattr(row, column):
                flows = steps.setdefault(f"{row.samples:,} samples, {row.dtype}", {})
                flows.setdefault(row.variant, []).append((row.flows, getattr(row, column)))
        for size, flows in steps.items():
            made.append(draw(f"{name} of a training step of {size}, against flows", "flows", "MB", flows))
    return made


# Sounds


class Sound(NamedTuple):
    title: str
    flac: bytes


def sounds() -> list[Sound]:
    """Return the demo clip and what the bundled model makes of its mel spectrogram."""
    import soundfile
    import torch

    import fastflow
    from fastflow.audio import Denoiser, MelConsistency, MelSpectrogram, read_audio

    clip = read_audio(Path(fastflow.__file__).parent / "assets" / "demo.flac")
    model = fastflow.load("waveglow-small")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        mel = MelSpectrogram()(clip)
        audio = model.infer(mel, sigma=0.6, generator=generator)
        denoised = Denoiser(model)(audio, strength=0.01)
        refined = MelConsistency()(audio[:, : len(clip)], mel)
    made = []
    for title, samples in (
        ("the recording (espeak-ng)", clip),
        ("waveglow-small from its mel spectrogram, sigma 0.6", audio[0, : len(clip)]),
        ("the same, denoised by 0.01", denoised[0, : len(clip)]),
        ("the first, refined to the mel spectrogram, as fastflow vocode does it", refined[0]),
    ):
        file = io.BytesIO()
        soundfile.write(file, samples.numpy().clip(-1, 1), model.sampling_rate, format="FLAC", subtype="PCM_16")
        made.append(Sound(title, file.getvalue()))
    return made


# The page

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 95em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: right; white-space: nowrap; }
th { background: #f3f3f3; } td:first-child, th:first-child, .left { text-align: left; }
figure { margin: 1.5em 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
audio { display: block; margin: 0.3em 0 1em; } .about { color: #666; font-size: 13px; }
"""


def html_of(markdown: str) -> str:
    """Turn tables and lines of our own Markdown into HTML."""
    made: list[str] = []
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            if line:
                made.append(f"<p>{inline(line)}</p>")
            continue
        cells = [inline(cell.strip()) for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[|\s:-]+", line):
            aligned = ["" if cell.endswith(":") else ' class="left"' for cell in cells]
            continue
        first = number == 0 or not lines[number - 1].startswith("|")
        if first:
            aligned = [""] * len(cells)
            made.append("<table>")
        tag = "th" if first else "td"
        made.append("<tr>" + "".join(f"<{tag}{a}>{c}</{tag}>" for a, c in zip(aligned, cells, strict=True)) + "</tr>")
        if number + 1 == len(lines) or not lines[number + 1].startswith("|"):
            made.append("</table>")
    return "\n".join(made)


def inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def page(results: Path, made: Sequence[Sound]) -> str:
    """Return the whole page."""
    body = ["<h1>fastflow: benchmarks</h1>"]
    for name, found in read_all(results).items():
        body += [f"<h2>{html.escape(name)}</h2>", f'<p class="about">{html.escape(measured_on(found))}</p>']
        if said := noise_line(found):
            body.append(f"<p>{said}</p>")
        body += [f"<figure>{plot.svg}</figure>" for plot in plots(found)]
        for part in WHOLE:
            mine = [row for row in found if row.part == part]
            if mine:
                body += [f"<h3>{part}</h3>", html_of(wide(mine))]
                body += [html_of(case_table(group)) for group in groups(mine) if len(spoken(group)) > 1]
        operations = [row for row in found if row.part in ("ops", "blocks", "device", "bench")]
        if operations:
            body += ["<h3>operations</h3>", html_of(operations_table(operations))]
        memory = [row for row in found if row.part == "memory"]
        if memory:
            body += ["<h3>memory of a training step</h3>", html_of(memory_table(memory))]
    if made:
        body.append("<h2>Sounds</h2>")
    for sound in made:
        encoded = base64.b64encode(sound.flac).decode("ascii")
        body.append(f"<p>{html.escape(sound.title)}</p>")
        body.append(f'<audio controls preload="metadata" src="data:audio/flac;base64,{encoded}"></audio>')
    head = f'<meta charset="utf-8"><title>fastflow: benchmarks</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--out", type=Path, default=ROOT / "report" / "index.html")
    options = parser.parse_args(arguments)
    options.readme.write_text(generated(options.readme.read_text(encoding="utf-8"), options.results), encoding="utf-8")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(options.results, sounds()), encoding="utf-8")
    print(f"{options.readme}\n{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
