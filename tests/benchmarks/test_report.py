"""README's tables are those of the stored rows; the page is one file with plots and players."""

from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import pytest
import soundfile

from benchmarks import report
from benchmarks.cpu import HIFI_GAN
from fastflow.bench import rows
from fastflow.bench.rows import Row
from fastflow.bench.timing import AGAIN, COPY, RATE

ROOT = Path(__file__).parents[2]


def test_the_tables_in_the_readme_are_those_of_the_rows() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.generated(readme) == readme, "make report"


def timed(part: str, case: str, op: str, variant: str, ms: float, **more: object) -> Row:
    row = Row(part, case, op, "float32", variant, error=1e-7, bound=1e-4, threads=2, rate=1e11, copy=1e10, **more)  # type: ignore[arg-type]
    row.set_times([ms, ms, 1.5 * ms])
    row.about = {"commit": "abc", "date": "2026-11-21T18:39:56+00:00", "device": "a CPU & more"}
    return row


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made = []
    for frames, samples in ((80, 20480), (400, 102400)):
        for variant, ms in ((RATE, 20.0), (COPY, 3.0), ("fastflow", 2000.0), ("eager", 3000.0), (HIFI_GAN, 500.0)):
            made.append(timed("cpu", f"WaveGlow-256, {frames} frames", "", variant, ms * samples / 20480, flops=4e11))
            made[-1].samples = samples
    made.append(timed("cpu", "WaveGlow-256, 80 frames", "", "fastflow" + AGAIN, 2020.0))
    made.append(
        Row("cpu", "WaveGlow-256, 80 frames", "", "float32", "openvino", refused="it is <out> of bounds", threads=2)
    )
    for variant, ms in (("eager", 4.0), ("cpu", 2.0), ("cpu" + AGAIN, 2.0)):
        made.append(timed("ops", "WaveGlow-256, 1 s, batch 1", "wn", variant, ms, flops=1e8, bytes=1e7))
    for flows in (4, 8):
        for variant, mb in (("eager", 90.0 * flows), ("fastflow, invert", 90.0)):
            made.append(
                timed(
                    "memory", f"training, {flows} flows", "", variant, 100.0, flows=flows, extra_mb=mb, kept_mb=mb / 2
                )
            )
    rows.store(made, tmp_path / "results" / "cpu-toy")
    return tmp_path / "results"


def test_the_fastest_is_bold_and_yardsticks_are_not(results: Path) -> None:
    text = report.readme_part(results)
    assert "| ms | fastflow | eager | openvino | HiFi-GAN V1, eager |" in text
    assert "| WaveGlow-256, 80 frames, float32, 2 threads | **2,000** | 3,000 | it is <out> of bounds | 500 |" in text
    assert AGAIN not in text and RATE not in text
    assert "`cpu-toy`, cpu (device a CPU & more; commit abc; date 2026-11-21):" in text
    assert "| 8 | eager | 360 | 720 | 100 |  |" in text
    assert "HiFi-GAN is another model" in text and "timed against itself differs by at most 1.0%." in text
    readme = f"before\n{report.BEGIN}stale\n{report.END}after\n"
    once = report.generated(readme, results)
    assert once.startswith("before\n") and once.endswith("after\n") and "stale" not in once
    assert report.generated(once, results) == once


class Page(html.parser.HTMLParser):
    """Counts elements and keeps what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag in ("table", "tr", "th", "td", "svg", "figure"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "tr", "th", "td", "svg", "figure"):
            assert self.open.pop() == tag


def test_the_page_is_one_file(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone = io.BytesIO()
    soundfile.write(tone, [0.0, 0.5, -0.5] * 100, 22050, format="FLAC")
    monkeypatch.setattr(report, "sounds", lambda: [report.Sound("a & b", tone.getvalue())])
    (tmp_path / "README.md").write_text(report.BEGIN + report.END)
    out = tmp_path / "out" / "page.html"
    assert report.main(["--results", str(results), "--readme", str(tmp_path / "README.md"), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and page.tags["svg"] == 4 and page.tags["audio"] == 1  # length, limits, peak, kept
    assert page.tags["table"] == 1 + 2 + 1 + 1  # all cases, each case, operations, memory
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    (sound,) = re.findall(r'src="data:audio/flac;base64,([^"]+)"', text)
    assert soundfile.read(io.BytesIO(base64.b64decode(sound)))[1] == 22050
    assert "it is &lt;out&gt; of bounds" in text and "a CPU &amp; more" in text and "a &amp; b" in text
    assert "the same case timed against itself differs by at most 1.0%" in text
    assert "fastflow bench" in (tmp_path / "README.md").read_text()


def test_the_limit_is_the_larger_of_arithmetic_and_traffic() -> None:
    row = timed("ops", "size", "wn", "cpu", 2.0, flops=1e8, bytes=1e7)
    assert row.fraction == pytest.approx(0.5) and row.fraction_of_copy == pytest.approx(0.5)
    assert timed("ops", "size", "wn", "cpu", 4.0, flops=1e8, bytes=3e7).fraction_of_limit == pytest.approx(0.75)
    assert timed("ops", "size", "wn", "cpu", 4.0, flops=1e8, limit_ms=1.0).fraction_of_limit == pytest.approx(0.25)


def test_rows_of_other_programs_are_read_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text('[{"part": "cpu", "case": "c", "op": "", "dtype": "float32", "variant": "v", "of others": 1}]')
    (row,) = rows.read(path)
    assert row.case == "c" and row.median_ms is None
    rows.store([Row("cpu", "d", "", "float32", "v")], tmp_path)
    assert '"of others": 1' in path.read_text() and len(rows.read(path)) == 2
