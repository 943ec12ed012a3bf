"""The picture of benchmarks.miniature: bits per byte through the file, by entry and cap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.miniature_rows import Row

COLOURS = ("#888888", "#4477aa", "#66ccee", "#ee9944", "#cc3311", "#aa3377")


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for every training time and cap as a PNG; a bar an entry, a dot a seed."""
    panels = sorted({(row.seconds, row.cap) for row in rows})
    entries = list(dict.fromkeys(row.entry for row in rows))
    figure = Figure(
        figsize=(1 + 3.4 * len(panels), 1.6 + 0.42 * len(entries)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (seconds, cap) in zip(grid, panels, strict=True):
        here = [row for row in rows if (row.seconds, row.cap) == (seconds, cap)]
        for number, entry in enumerate(entries):
            scores = [row.score for row in here if row.entry == entry]
            if scores:
                axes.barh(number, fmean(scores), color=COLOURS[number % len(COLOURS)], height=0.7)
                axes.plot(scores, [number] * len(scores), "k.", ms=4)
                axes.annotate(f" {fmean(scores):.4f}", (max(scores), number), va="center", size=8)
        low, high = (limit([row.score for row in here]) for limit in (min, max))
        axes.set_xlim(low - 0.6 * (high - low) - 0.01, high + 0.6 * (high - low) + 0.01)
        axes.set_title(f"{cap:,} bytes, {seconds:g} s", loc="left", fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(entries)), entries)
    grid[0].invert_yaxis()
    figure.supxlabel("bits per byte through the file, mean of both texts", fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})
