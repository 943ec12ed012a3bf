"""The picture of benchmarks.miniature: bits per byte through the file, by entry and cap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.miniature_rows import Row

COLOURS = ("#888888", "#4477aa", "#66ccee", "#ee9944", "#cc3311", "#aa3377")


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for every training time and cap as a PNG: a small dot a seed, a diamond the mean."""
    panels = sorted({(row.seconds, row.cap) for row in rows})
    entries = list(dict.fromkeys(row.entry for row in rows))
    size = (1.6 + 3.4 * len(panels), 1.4 + 0.4 * len(entries))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (seconds, cap) in zip(grid, panels, strict=True):
        here = [row for row in rows if (row.seconds, row.cap) == (seconds, cap)]
        for number, entry in enumerate(entries):
            scores = [row.score for row in here if row.entry == entry]
            if scores:
                _mark(axes, number, scores)
        axes.set_title(f"{cap:,} bytes, {seconds:g} s", loc="left", fontsize=10)
        axes.margins(x=0.25, y=0.15)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(True, axis="x", color="#dddddd", lw=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(entries)), entries)
    grid[0].invert_yaxis()
    figure.supxlabel("bits per byte through the file, mean of both texts", fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _mark(axes: Axes, number: int, scores: Sequence[float]) -> None:
    colour, mean = COLOURS[number % len(COLOURS)], fmean(scores)
    axes.plot(mean, number, "D", color=colour, ms=7)
    axes.plot(scores, [number] * len(scores), ".", color="black", ms=4)
    text = f"{mean:.4f}"
    axes.annotate(text, (mean, number), (0, 7), textcoords="offset points", ha="center", size=8)
