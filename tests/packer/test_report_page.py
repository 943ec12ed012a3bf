"""The page of a report: its numbers are the report's, every tensor is there, text stays text, and a
browser shows it.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from packer import api
from packer.artifact.encoder import Artifact
from packer.errors import PackerError
from packer.planning.damage_fit import DamageTrial, fit_damage
from packer.reports.agg import Artist, Figure, new_figure, own_style
from packer.reports.colours import PAPER
from packer.reports.histograms import barred, draw_histograms
from packer.reports.page import describe_page, pictures_of
from packer.reports.pictures import LINE_FEED, TITLE, Paper, Picture, figure_html, titled
from packer.reports.report import Report, TensorRow
from packer.reports.report_data import ComparedFile, ReportData, read_compared, report_data
from packer.reports.size_figures import comparable, draw_curve, draw_trials
from packer.reports.sources import load_histograms, load_report
from packer.reports.treemap import SMALLEST_SHARE, squarified

Read = Callable[..., Any]
Run = Callable[..., Result]
HOSTILE = "</title><script>alert(1)</script> \" ' & <img src=http://example.org/a.png>"
WIDTHS = (360.0, 960.0)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
COMPARED = ComparedFile("sdclip", 12.85, None, 9_000, 0.004)


def data_of(made: Path, source: str) -> ReportData:
    report, plan = load_report(made / source)
    return report_data(report, plan, histograms=load_histograms(made / source, report))


def drawn(draw: Callable[[Paper], None], width: float, height: float = 500) -> Figure:
    with own_style():
        figure = new_figure(width, height)
        draw(Paper(figure, 0, 0, width, height))
    return figure


def title(artist: Artist) -> str:
    found = artist.get_gid() or ""
    return found.removeprefix(TITLE).replace(LINE_FEED, "\n") if found.startswith(TITLE) else ""


def titles(figure: Figure) -> list[str]:
    return [words for artist in figure.findobj() if (words := title(artist))]


@pytest.mark.parametrize("source", ["model.pt", "plan.json", "model.pack"])
def test_the_page_says_what_the_report_says(made: Path, read_page: Read, source: str) -> None:
    found = data_of(made, source)
    report, page = found.report, describe_page(found)
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
    assert all(one.heading in text for one in pictures_of(found))


def test_what_a_source_does_not_know_is_left_out(made: Path) -> None:
    always = ["Where the bytes go", "Bits per weight"]
    codes = "Codes of the most coarsely stored tensors"

    def headings(found: ReportData) -> list[str]:
        return [one.heading for one in pictures_of(found)]

    assert headings(data_of(made, "model.pt")) == always
    assert headings(data_of(made, "plan.json")) == [*always, "Size and damage"]
    artifact = data_of(made, "model.pack")
    assert headings(artifact) == [*always, *([codes] if artifact.histograms else [])]
    report, plan = load_report(made / "plan.json")
    assert plan is not None
    trials = [DamageTrial("one", {"mlp-in": 0.5}, 0.6), DamageTrial("two", {"mlp-in": 0.1}, 0.15)]
    fitted = api.plan(plan.measurement.fitted(fit_damage(trials, "a text", 9)), 12_000)
    measured = report_data(report, fitted, compared=[COMPARED])
    assert headings(measured) == [*always, "Size and damage", "Predicted against measured damage"]
    assert comparable(measured) == (COMPARED,)
    assert comparable(report_data(report, plan, compared=[COMPARED])) == (), "in other units"


def test_every_tensor_is_in_the_pictures(made: Path) -> None:
    report, _ = load_report(made / "plan.json")
    treemap, heat_map = pictures_of(report_data(report))
    for width in WIDTHS:
        for picture, shown in ((treemap, "size_bytes"), (heat_map, "elements")):
            found = titles(drawn(picture.draw, width, picture.height(width)))
            for row in report.rows:
                start = f"{row.name} ({row.role})\n{row.size_bytes:,} bytes"
                assert any(one.startswith(start) for one in found) == (getattr(row, shown) > 0)


def test_nothing_is_drawn_off_the_paper(made: Path) -> None:
    found = data_of(made, "plan.json")
    for width in WIDTHS:
        for one in pictures_of(found):
            figure = drawn(one.draw, width, one.height(width))
            with own_style():
                inked = figure.get_tightbbox().padded(-1)
            assert inked.x0 >= 0 and inked.y0 >= 0, one.heading
            assert inked.x1 <= width / 72 and inked.y1 <= one.height(width) / 72, one.heading


def test_layers_of_a_heat_map_are_in_order() -> None:
    names = [f"blocks.{layer}.w" for layer in (10, 2, 0, 1)]
    rows = [TensorRow(name, "other", int(name[7:-2]), (8,), "float32", "c", 9) for name in names]
    (_, picture) = pictures_of(report_data(Report("a", "artifact", tuple(rows), 0, 0, 36, 0)))
    axes = drawn(picture.draw, 960, picture.height(960)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2", "10"]
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first is above"


def test_the_colours_of_a_deep_model_span_its_matrices() -> None:
    """Although no matrix has 1 % of the bytes, and though norms take 16 bits."""
    rows = [TensorRow("embed", "token-embedding", None, (800, 100), "float32", "c", 50_000)]
    for layer in range(120):
        size = 500 + 5 * layer
        rows.append(TensorRow(f"{layer}.w", "mlp-in", layer, (10, 100), "float32", "c", size))
        rows.append(TensorRow(f"{layer}.n", "norm", layer, (4,), "float32", "c", 8))
    (_, picture) = pictures_of(report_data(Report("a", "artifact", tuple(rows), 0, 0, 200_000, 0)))
    *_, scale = drawn(picture.draw, 960, picture.height(960)).axes
    shown = [label.get_text() for label in scale.get_xticklabels()]
    assert (shown[0], shown[-1]) == ("≤ 4.08", "≥ 8.76") and len(shown) == 5
    assert [text.get_text() for text in scale.texts] == ["bits per weight"]


sizes_of_maps = st.lists(st.integers(1, 10**9), min_size=1, max_size=40)


@settings(deadline=None)
@given(sizes=sizes_of_maps, width=st.floats(10, 2000), height=st.floats(10, 2000))
def test_a_treemap_is_exact_and_covers_its_place(
    sizes: list[int], width: float, height: float
) -> None:
    sizes.sort(reverse=True)
    places = list(squarified(sizes, (5, 7, width, height)))
    shown = [max(size, SMALLEST_SHARE * sum(sizes)) for size in sizes]
    for size, (x, y, across, down) in zip(shown, places, strict=True):
        area = width * height * size / sum(shown)
        assert across * down == pytest.approx(area, rel=1e-6, abs=1e-6)
        assert x >= 5 - 1e-6 and x + across <= 5 + width + 1e-6
        assert y >= 7 - 1e-6 and y + down <= 7 + height + 1e-6
    for index, (x, y, across, down) in enumerate(places):
        for left, top, wide, high in places[:index]:
            over = min(x + across, left + wide) - max(x, left)
            under = min(y + down, top + high) - max(y, top)
            assert min(over, under) <= 1e-6 * max(width, height)


def test_hostile_names_stay_text(tmp_path: Path, read_page: Read) -> None:
    name = f"blocks.0.$\\frac{HOSTILE}$\u202e\x07\n"
    weights = {name: torch.randn(80, 64, generator=torch.Generator().manual_seed(1))}
    plan = api.plan(weights, 3_000)
    packed = api.pack(weights, plan, out=tmp_path / "m.pack")
    report, _ = load_report(tmp_path / "m.pack")
    found = report_data(
        report,
        histograms=load_histograms(tmp_path / "m.pack", report),
        compared=[ComparedFile(f"_{HOSTILE}$_$", None, None, 10, 0.1)],
    )
    assert found.histograms and packed.account.total_bytes <= 3_000
    page = describe_page(found)
    reader = read_page(page)
    assert f"_{HOSTILE}$_$" in reader.text and f"blocks.0.$\\frac{HOSTILE}$" in reader.text
    assert (
        reader.tags.count("img") == reader.tags.count("script") == 0
        and reader.tags.count("title") > 1
    )
    assert "\x07" not in page and "\u202e" not in page


def test_a_report_of_nothing_is_a_page(read_page: Read) -> None:
    empty = Report("nothing", "artifact", (), 0, 0, 0, 0)
    assert pictures_of(report_data(empty)) == ()
    assert "nothing" in read_page(describe_page(report_data(empty))).text
    rows = (TensorRow("a", "other", None, (0,), "float32", "fp32", 5),)
    drawn = report_data(Report("a", "artifact", rows, 0, 0, 5, 0))
    assert [one.heading for one in pictures_of(drawn)] == ["Where the bytes go"]
    read_page(describe_page(drawn))


def test_the_curve_has_the_plan_on_it(made: Path) -> None:
    found = data_of(made, "plan.json")
    plan = found.plan
    assert plan is not None
    for width in WIDTHS:
        (axes,) = drawn(lambda paper: draw_curve(found, paper), width).axes
        (dot,) = [line for line in axes.lines if title(line)]
        total, damage = found.report.total_bytes, plan.plan.damage
        assert title(dot) == f"this plan\n{total:,} bytes\npredicted damage {damage:.4g}"
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (total, damage)
        (curve,) = [line for line in axes.lines if line.get_label() == "best at each size"]
        # The plan lies on the lower hull or a little above it.
        assert damage == pytest.approx(np.interp(total, *curve.get_data()), rel=0.1)
    for point in found.points:
        assert point.bound_bytes is None
        assert point.damage <= found.points[0].damage


def test_trials_stand_at_what_was_predicted_and_measured() -> None:
    trials = [DamageTrial("small", {"a": 1e-3}, 2e-3), DamageTrial("large", {"a": 1e-2}, 1.5e-2)]
    fit = fit_damage(trials, "a text", 9)
    (axes,) = drawn(lambda paper: draw_trials(fit, paper), 960).axes
    places = {title(line): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert places["small\npredicted 0.001 before the fit\nmeasured 0.002"] == (1e-3, 2e-3)
    assert places["large\npredicted 0.01 before the fit\nmeasured 0.015"] == (1e-2, 1.5e-2)
    assert [words.count("after the fit") for words in places].count(1) == 2
    assert axes.get_xlim() == axes.get_ylim()


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
    figure = drawn(lambda paper: draw_histograms([one], paper), 360)
    shown = [words for words in titles(figure) if words.startswith("code")]
    assert len(shown) == len(bars) and per_bar == 1


def test_other_files_are_no_comparison(tmp_path: Path) -> None:
    row = {
        "recipe": "r",
        "parameter": 8,
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
            "parameter": None,
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
    assert result.exit_code == 2 and "--curvature is for a plan" in result.stderr


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
    page.write_text(describe_page(data_of(made, "plan.json")), "utf-8")
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


def test_pictures_are_drawn_for_both_widths_and_follow_the_paper() -> None:
    widths: list[float] = []

    def draw(paper: Paper) -> None:
        widths.append(paper.width)
        axes = paper.canvas(0)
        titled(axes.text(1, 9, "a<b #ffffff", color=PAPER), 'x"\x07\ny')
        axes.text(1, 9, "$_{", color="#123456")

    text = figure_html(Picture("heading", "caption", lambda width: width / 4, draw))
    assert widths == [960.0, 360.0]
    assert text.count("a&lt;b #ffffff") == 2 and text.count('<title>x"\ufffd\ny</title>') == 2
    assert text.count("fill: var(--paper)") == 2 and text.count("fill: #123456") == 2
    assert text.count(">$_{<") == 2 and "<metadata" not in text and "<style" not in text
    assert text == figure_html(Picture("heading", "caption", lambda width: width / 4, draw))


def test_ids_of_a_page_are_used_once(made: Path) -> None:
    page = describe_page(data_of(made, "plan.json"))
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) == set(ids)
