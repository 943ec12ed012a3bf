"""The picture of benchmarks.scale: processor time and peak memory against parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

if TYPE_CHECKING:
    from benchmarks.scale_rows import Row

COLOURS = {
    "measure": "#4477aa",
    "plan": "#888888",
    "pack": "#ee6677",
    "unpack": "#228833",
    "verify": "#aa3377",
}


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Two panels as a PNG: seconds on a processor, and peak memory."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _frame(axes, sorted({row.parameters for row in rows}))
    for calibrated in (False, True):
        for step, colour in COLOURS.items():
            chosen = sorted(
                (row for row in rows if (row.curvature, row.step) == (calibrated, step)),
                key=lambda row: row.parameters,
            )
            if chosen:
                look = {
                    "color": colour,
                    "marker": "o",
                    "ms": 4,
                    "ls": "--" if calibrated else "-",
                }
                counts = [row.parameters for row in chosen]
                left.plot(counts, [row.cpu_seconds for row in chosen], **look)
                right.plot(counts, [row.peak_bytes / 1e6 for row in chosen], **look)
    _linear(left, rows)
    sizes = sorted({(row.parameters, row.checkpoint_bytes / 1e6) for row in rows})
    right.plot(*zip(*sizes, strict=True), color="black", ls=":", lw=1)
    right.annotate(
        "the checkpoint itself",
        sizes[-1],
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    left.set_title("Processor time, seconds", loc="left")
    right.set_title("Peak memory of the process, MB", loc="left")
    _legend(figure, any(row.curvature for row in rows))
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _frame(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters")
    axes.grid(True, which="major", color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _linear(axes: Axes, rows: Sequence[Row]) -> None:
    """A line of slope 1 through the smallest checkpoint's measuring."""
    first = min(
        (row for row in rows if row.step == "measure" and not row.curvature),
        key=lambda row: row.parameters,
        default=None,
    )
    if first is not None:
        most = max(row.parameters for row in rows)
        ends = [first.parameters, most]
        start = first.cpu_seconds * 0.5
        heights = [start, start * most / first.parameters]
        axes.plot(ends, heights, color="black", ls=":", lw=1)
        middle = (first.parameters * most) ** 0.5, (heights[0] * heights[1]) ** 0.5
        axes.annotate(
            "linear growth",
            middle,
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize=9,
        )


def _legend(figure: Figure, calibrated: bool) -> None:
    """Below both panels: a colour for every step, a kind of line for curvature."""
    lines = [
        Line2D([], [], color=colour, marker="o", ms=4, label=step)
        for step, colour in COLOURS.items()
    ]
    if calibrated:
        lines.append(Line2D([], [], color="black", ls="--", label="with curvature"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
