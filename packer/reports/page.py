"""A report as an HTML page: figures, facts, the account and every tensor, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from packer.reports import html
from packer.reports.describe import describe_account, describe_proof
from packer.reports.heat_map import draw_heat_map, heat_map_height
from packer.reports.histograms import draw_histograms, histograms_height
from packer.reports.html import Html
from packer.reports.pictures import Picture, figure_html
from packer.reports.report import by_layer, by_role
from packer.reports.report_data import ReportData
from packer.reports.size_figures import (
    DAMAGE_BPB,
    comparable,
    curve_height,
    curve_points,
    draw_curve,
    draw_trials,
)
from packer.reports.tables import curve_rows, known, share_rows, tensor_cells
from packer.reports.treemap import draw_treemap, treemap_height

KINDS = {
    "checkpoint": "checkpoint, uncompressed",
    "plan": "plan",
    "artifact": "artifact",
    "foreign": "artifact of another author",
}


def pictures_of(data: ReportData) -> tuple[Picture, ...]:
    """The pictures of a report; those whose numbers are unknown are left out."""
    report, plan = data.report, data.plan
    pictures = []
    if any(row.size_bytes for row in report.rows):
        pictures.append(_treemap(data))
    if any(row.elements for row in report.rows):
        pictures.append(_heat_map(data))
    if curve_points(data) or comparable(data):
        pictures.append(_curve(data))
    if data.histograms:
        drawn = data.histograms
        pictures.append(
            Picture(
                "Codes of the most coarsely stored tensors",
                "How often each code occurs where weights have the fewest bits; the outermost "
                "thousandth is left out. Entropy is of order 0; tensors take less than it where "
                "rows and columns differ, and more where their scales weigh.",
                partial(histograms_height, drawn),
                partial(draw_histograms, drawn),
            )
        )
    fit = None if plan is None else plan.measurement.damage_fit
    if fit is not None:
        pictures.append(
            Picture(
                "Predicted against measured damage",
                f"Each dot is a true measurement of KL to the unquantized model: {fit.describe()}. "
                "Rings are predictions before the factors per role were fitted.",
                curve_height,
                partial(draw_trials, fit),
            )
        )
    return tuple(pictures)


def _treemap(data: ReportData) -> Picture:
    report = data.report
    shared = (
        " Another author's compressor took all tensors as one: bytes are shared out by entropy."
    )
    return Picture(
        "Where the bytes go",
        "Every box is a tensor, as large as its bytes; tensors of one layer stand together."
        + shared * (report.kind == "foreign"),
        treemap_height,
        partial(draw_treemap, report),
    )


def _heat_map(data: ReportData) -> Picture:
    report = data.report
    return Picture(
        "Bits per weight",
        "A row per layer and a column per role; where several tensors share both, each has its "
        "strip, and the number is of all of them.",
        partial(heat_map_height, report),
        partial(draw_heat_map, report),
    )


def _curve(data: ReportData) -> Picture:
    plan, bound = data.plan, data.bound
    words = "Whatever lies lower or further left is better."
    if plan is not None:
        words = "The line is the least predicted damage at every size, by the plan's measurements."
    if bound is not None:
        ratio = bound.total_bytes / data.report.total_bytes
        words += (
            " The Shannon bound is what Gaussian weights of such variance and curvature must take: "
            f"at the plan's damage {ratio:.3f} times its bytes."
        )
    if data.compared:
        words += " Dots are files that were packed, read back and measured."
    return Picture("Size and damage", words, curve_height, partial(draw_curve, data))


def describe_page(data: ReportData) -> str:
    """The whole page as HTML."""
    report = data.report
    weights = sum(row.elements for row in report.rows)
    kind = KINDS[report.kind]
    if data.plan is not None:
        kind += f" for {Path(data.plan.measurement.source).name}"
    lead = f"{kind} · {len(report.rows):,} tensors · {weights:,} weights"
    return html.page(Path(report.source).name, lead, _blocks(data))


def _blocks(data: ReportData) -> list[Html]:
    report, plan = data.report, data.plan
    blocks = [html.facts(_facts(data)), html.heading("The account, to the byte")]
    words = describe_account(report, plan).partition("\n")[0]
    blocks.append(
        html.account_bar(report.account)
        if report.account is not None
        else html.bar(_parts(data), words)
    )
    if plan is not None:
        blocks.append(html.paragraph(plan.limits.describe_code()))
    blocks += [html.paragraph(note) for note in report.notes]
    for one in pictures_of(data):
        blocks += [html.heading(one.heading), figure_html(one)]
    if data.points:
        blocks += [html.heading("The curve in numbers"), html.table(*curve_rows(data))]
    cells = {
        "Roles": share_rows("role", by_role(report)),
        "Layers": share_rows("layer", by_layer(report)),
        "Every tensor": tensor_cells(report),
    }
    for title, table in cells.items():
        blocks += [html.heading(title), html.table(*known(table))]
    return blocks


def _parts(data: ReportData) -> Mapping[str, int]:
    """The known parts of the account."""
    report = data.report
    left = max(report.unused_bytes, 0) if report.cap_bytes else 0
    if data.plan is not None:
        header, tensors = report.header_bytes, report.artifact_bytes - report.header_bytes
        return {"code": report.code_bytes, "header": header, "tensors": tensors, "left": left}
    what = "artifact" if report.kind == "foreign" else "weights as stored"
    return {"code": report.code_bytes, what: report.artifact_bytes, "left": left}


def _facts(data: ReportData) -> list[tuple[str, str]]:
    report, plan, bound = data.report, data.plan, data.bound
    total = f"{report.total_bytes:,}"
    cap = f"bytes of {report.cap_bytes:,}" if report.cap_bytes else "bytes; no cap given"
    facts = [(total, cap)]
    weights = sum(row.elements for row in report.rows)
    if weights:
        bits = 8 * report.artifact_bytes / weights
        facts.append((f"{bits:.3f}", "bits per weight, everything in the file"))
    if plan is not None:
        unit = "bits per byte" if plan.plan.damage_kind == DAMAGE_BPB else "weighted squared error"
        facts.append(
            (f"{plan.plan.damage:.4g}", f"predicted damage, {unit}; {describe_proof(plan)}")
        )
        if report.price:
            saved = f"{1000 * report.price:.3g}"
            facts.append((saved, "of damage saved by 1,000 more bytes"))
    if bound is not None:
        ratio = f"{bound.total_bytes / report.total_bytes:.3f} ×"
        facts.append((ratio, f"Shannon bound: {bound.total_bytes:,} bytes at this damage"))
    return facts
