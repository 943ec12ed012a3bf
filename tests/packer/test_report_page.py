"""The page of a report: its numbers are the report's, every tensor is there, text stays text, and a
browser shows it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from packer import api
from packer.artifact import Artifact
from packer.damage_fit import Trial, fit_damage
from packer.errors import PackerError
from packer.reports.drawing import Box, Dot, Drawing, Figure, Line, Words
from packer.reports.evidence import ComparedFile, Evidence, evidence_of, read_compared
from packer.reports.heat_map import draw_heat_map
from packer.reports.histograms import barred, draw_histograms
from packer.reports.page import figures_of, spell_page
from packer.reports.report import Report, TensorRow
from packer.reports.size_figures import comparable, draw_curve, draw_trials
from packer.reports.sources import load_histograms, load_report
from packer.reports.treemap import Place, draw_treemap, squarified

Read = Callable[..., Any]
Run = Callable[..., Result]
HOSTILE = "</title><script>alert(1)</script> \" ' & <img src=http://example.org/a.png>"
WIDTHS = (360.0, 960.0)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
COMPARED = ComparedFile("sdclip", 12.85, None, 9_000, 0.004)


def evidence(made: Path, source: str) -> Evidence:
    report, plan = load_report(made / source)
    return evidence_of(report, plan, histograms=load_histograms(made / source, report))


def titles(drawing: Drawing) -> list[str]:
    return [mark.title for mark in drawing.marks if not isinstance(mark, Line) and mark.title]


def words(drawing: Drawing) -> list[str]:
    return [mark.text for mark in drawing.marks if isinstance(mark, Words)]


@pytest.mark.parametrize("source", ["model.pt", "plan.json", "model.pack"])
def test_the_page_says_what_the_report_says(made: Path, read_page: Read, source: str) -> None:
    found = evidence(made, source)
    report, page = found.report, spell_page(found)
    text = read_page(page).text
    for row in report.rows:
        assert row.name in text
    parts = [report.total_bytes, report.code_bytes, report.artifact_bytes]
    if report.account is not None:
        account = report.account
        parts = [account.header_bytes, account.side_bytes, account.payload_bytes]
        assert str(account) in text
    for size in (*parts, *(row.size_bytes for row in report.rows)):
        assert f"{size:,}" in text
    assert "://" not in page
    assert all(one.heading in text for one in figures_of(found))


def test_what_a_source_does_not_know_is_left_out(made: Path) -> None:
    always = ["Where the bytes go", "Bits per weight"]
    codes = "Codes of the most coarsely stored tensors"

    def headings(found: Evidence) -> list[str]:
        return [one.heading for one in figures_of(found)]

    assert headings(evidence(made, "model.pt")) == always
    assert headings(evidence(made, "plan.json")) == [*always, "Size and damage"]
    artifact = evidence(made, "model.pack")
    assert headings(artifact) == [*always, *([codes] if artifact.histograms else [])]
    report, plan = load_report(made / "plan.json")
    assert plan is not None
    trials = [Trial("one", {"mlp-in": 0.5}, 0.6), Trial("two", {"mlp-in": 0.1}, 0.15)]
    fitted = api.plan(plan.measurement.fitted(fit_damage(trials, "a text", 9)), 12_000)
    measured = evidence_of(report, fitted, compared=[COMPARED])
    assert headings(measured) == [*always, "Size and damage", "Predicted against measured damage"]
    assert comparable(measured) == (COMPARED,)
    assert comparable(evidence_of(report, plan, compared=[COMPARED])) == (), "in other units"


def test_every_tensor_is_in_the_figures(made: Path) -> None:
    report, _ = load_report(made / "plan.json")
    for width in WIDTHS:
        mapped, heat = titles(draw_treemap(report, width)), titles(draw_heat_map(report, width))
        for row in report.rows:
            start = f"{row.name} ({row.role})\n{row.size_bytes:,} bytes"
            assert any(title.startswith(start) for title in mapped) == (row.size_bytes > 0)
            assert any(title.startswith(start) for title in heat) == (row.elements > 0)


def test_marks_stay_on_the_paper(made: Path) -> None:
    found = evidence(made, "plan.json")
    for width in WIDTHS:
        for one in figures_of(found):
            drawing = one.draw(width)
            for mark in drawing.marks:
                points = mark.points if isinstance(mark, Line) else ((mark.x, mark.y),)
                for x, y in points:
                    assert -0.01 <= x <= width + 0.01, (one.heading, mark)
                    assert -0.01 <= y <= drawing.height + 0.01, (one.heading, mark)
                if isinstance(mark, Box):
                    assert mark.x + mark.width <= width + 0.6
                    assert mark.y + mark.height <= drawing.height + 0.6


sizes_of_maps = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)


@settings(deadline=None)
@given(sizes=sizes_of_maps, width=st.floats(10, 2000), height=st.floats(10, 2000))
def test_a_treemap_is_exact_and_covers_its_place(
    sizes: list[int], width: float, height: float
) -> None:
    sizes.sort(reverse=True)
    places = squarified(sizes, Place(5, 7, width, height))
    scale = width * height / sum(sizes)
    for size, place in zip(sizes, places, strict=True):
        assert place.area == pytest.approx(size * scale, rel=1e-6, abs=1e-6)
        assert place.x >= 5 - 1e-6 and place.x + place.width <= 5 + width + 1e-6
        assert place.y >= 7 - 1e-6 and place.y + place.height <= 7 + height + 1e-6
    for index, one in enumerate(places):
        for other in places[:index]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(across, down) <= 1e-6 * max(width, height)


def test_hostile_names_stay_text(tmp_path: Path, read_page: Read) -> None:
    name = f"blocks.0.{HOSTILE}\u202e\x07"
    weights = {name: torch.randn(80, 64, generator=torch.Generator().manual_seed(1))}
    plan = api.plan(weights, 3_000)
    packed = api.pack(weights, plan, out=tmp_path / "m.pack")
    report, _ = load_report(tmp_path / "m.pack")
    found = evidence_of(
        report,
        histograms=load_histograms(tmp_path / "m.pack", report),
        compared=[ComparedFile(HOSTILE, None, None, 10, 0.1)],
    )
    assert found.histograms and packed.account.total_bytes <= 3_000
    page = spell_page(found)
    reader = read_page(page)
    assert HOSTILE in reader.text
    assert reader.tags.count("img") == 0 and reader.tags.count("title") > 1
    assert "\x07" not in page and "\u202e" not in page


def test_a_report_of_nothing_is_a_page(read_page: Read) -> None:
    empty = Report("nothing", "artifact", (), 0, 0, 0, 0)
    assert figures_of(evidence_of(empty)) == ()
    assert "nothing" in read_page(spell_page(evidence_of(empty))).text
    rows = (TensorRow("a", "other", None, (0,), "float32", "fp32", 5),)
    drawn = evidence_of(Report("a", "artifact", rows, 0, 0, 5, 0))
    assert [one.heading for one in figures_of(drawn)] == ["Where the bytes go"]
    read_page(spell_page(drawn))


def test_the_curve_has_the_plan_on_it(made: Path) -> None:
    found = evidence(made, "plan.json")
    plan = found.plan
    assert plan is not None
    for width in WIDTHS:
        drawing = draw_curve(found, width)
        told = [title for title in titles(drawing) if title.startswith("this plan")]
        damage = f"predicted damage {plan.plan.damage:.4g}"
        assert told == [f"this plan\n{found.report.total_bytes:,} bytes\n{damage}"]
        (dot,) = [mark for mark in drawing.marks if isinstance(mark, Dot) and mark.title]
        lines = [mark for mark in drawing.marks if isinstance(mark, Line) and not mark.dashed]
        curve = max(lines, key=lambda line: len(line.points))
        near = min(curve.points, key=lambda point: abs(point[0] - dot.x))
        # The plan lies on the lower hull or a little above it: y grows downwards.
        assert abs(near[0] - dot.x) < 25 and abs(near[1] - dot.y) < 25
    for point in found.points:
        assert point.bound_bytes is None
        assert point.damage <= found.points[0].damage


def test_trials_stand_at_what_was_predicted_and_measured() -> None:
    trials = [Trial("small", {"a": 1e-3}, 2e-3), Trial("large", {"a": 1e-2}, 1.5e-2)]
    drawing = draw_trials(fit_damage(trials, "a text", 9), 960.0)
    rings = [m for m in drawing.marks if isinstance(m, Dot) and m.hollow and m.title]
    assert [m.title.partition("\n")[0] for m in rings] == ["small", "large"]
    # A decade is as long on both axes of this scale as between its ticks.
    small, large = rings
    decade = large.x - small.x
    assert decade > 0
    per_log = (small.y - large.y) / math.log10(1.5e-2 / 2e-3)
    assert per_log > 0
    assert "measured 0.002" in small.title and "predicted 0.001 before the fit" in small.title


def test_histograms_count_the_codes(tmp_path: Path) -> None:
    weights = {"w.weight": torch.randn(96, 64, generator=torch.Generator().manual_seed(2))}
    plan = api.plan(weights, 4_000)
    packed = api.pack(weights, plan, out=tmp_path / "m.pack")
    report, _ = load_report(tmp_path / "m.pack")
    (one,) = load_histograms(tmp_path / "m.pack", report)
    codes = Artifact.from_bytes(packed.data).tensors["w.weight"].codes
    assert sum(one.counts) == codes.numel()
    for code in (-1, 0, 2):
        assert one.counts[code - one.first] == int((codes == code).sum())
    share = torch.tensor([n for n in one.counts if n]).double() / codes.numel()
    assert one.entropy_bits == pytest.approx(-float((share * share.log2()).sum()))
    bars, per_bar, first = barred(one)
    assert 0.998 * codes.numel() <= sum(bars) <= codes.numel() and first >= one.first
    shown = [title for title in titles(draw_histograms([one], 360.0)) if title.startswith("code")]
    assert len(shown) == len(bars) and per_bar == 1


def test_other_files_are_no_comparison(tmp_path: Path) -> None:
    row = {
        "recipe": "r",
        "knob": 8,
        "cap_bytes": None,
        "total_bytes": 10,
        "kl_bits_per_byte": 0.5,
    }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [row, {**row, "kl_bits_per_byte": None}]}))
    assert read_compared(path) == (ComparedFile("r", 8.0, None, 10, 0.5),)
    for wrong in ({}, {"rows": 3}, {"rows": [{}]}, {"rows": [{**row, "total_bytes": -1}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(PackerError, match=r"rows\.json is not what `packer compare --json`"):
            read_compared(path)


def test_the_command_writes_page_and_picture(run: Run, made: Path, read_page: Read) -> None:
    rows = [
        {
            "recipe": "zstd",
            "knob": None,
            "cap_bytes": 12_000,
            "total_bytes": 11_000,
            "kl_bits_per_byte": 0.5,
        }
    ]
    Path("rows.json").write_text(json.dumps({"rows": rows}))
    result = run("report", made / "model.pack", "--html", "p.html", "--plot", "p.png", "--json")
    assert result.exit_code == 0
    value = json.loads(result.stdout)
    assert (value["html"], value["plot"]) == ("p.html", "p.png")
    assert Path("p.png").stat().st_size > 10_000
    page = Path("p.html").read_text("utf-8")
    assert f"{value['total_bytes']:,}" in read_page(page).text
    assert run("report", made / "model.pack", "--html", "p.html").exit_code == 0
    assert Path("p.html").read_text("utf-8") == page, "the same page twice"
    result = run("report", made / "model.pt", "--compare", "rows.json", "--html", "c.html")
    assert result.exit_code == 0
    assert "zstd\n11,000 bytes" in read_page(Path("c.html").read_text("utf-8")).text


def test_a_plan_is_told_with_its_curve_and_price(run: Run, made: Path) -> None:
    text = run("report", made / "plan.json").stdout
    assert "total bytes  of the plan's  predicted damage" in text
    assert "1,000 more bytes would save" in text
    value = json.loads(run("report", made / "plan.json", "--json").stdout)
    sizes = [point["total_bytes"] for point in value["curve"]]
    assert value["total_bytes"] in sizes and sizes == sorted(sizes)
    assert value["shannon_bound_bytes"] is None


def test_wrong_use_is_told(run: Run, made: Path) -> None:
    for arguments, said in (
        (("--html", made / "plan.json"), "is an input"),
        (("--html", "a.png", "--plot", "a.png"), "cannot be both"),
        (("--checkpoint", made / "model.pt"), "goes with --curvature"),
    ):
        result = run("report", made / "plan.json", *arguments)
        assert result.exit_code == 2 and said in result.stderr
    result = run("report", made / "model.pt", "--curvature", made / "model.pt")
    assert result.exit_code == 2 and "bounds a plan" in result.stderr


def pixels(png: bytes) -> list[bytes]:
    """Rows of an 8-bit PNG, unfiltered, for RGB and RGBA."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8 and kind in (2, 6)
    size = 3 if kind == 2 else 4
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw, rows, stride = zlib.decompress(data), [], width * size + 1
    for line in range(height):
        rows.append(raw[line * stride + 1 : (line + 1) * stride])
    return rows


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page(made: Path, tmp_path: Path, width: int) -> None:
    """It draws something on every part of a long page, and complains of nothing."""
    page = tmp_path / "page.html"
    page.write_text(spell_page(evidence(made, "plan.json")), "utf-8")
    shot = tmp_path / "shot.png"
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            f"--window-size={width},1600",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"CONSOLE.*(error|refused|blocked)", done.stderr, re.IGNORECASE)
    drawn = pixels(shot.read_bytes())
    assert len(drawn) == 1600
    for part in range(0, 1600, 400):
        assert len(set(drawn[part : part + 400])) > 20, f"nothing between rows {part}, {part + 400}"


def test_figures_are_drawn_for_both_widths() -> None:
    drawn: list[float] = []

    def draw(width: float) -> Drawing:
        drawn.append(width)
        return Drawing(width, 10, (Words(0, 5, "a<b", title='"'),))

    from packer.reports.svg import figure

    text = figure(Figure("heading", "caption", draw))
    assert drawn == [960.0, 360.0]
    assert text.count("a&lt;b") == 2 and text.count("<title>&quot;</title>") == 2
