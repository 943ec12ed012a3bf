"""Histograms of codes, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packer.reports.colours import CURVE, SOFT
from packer.reports.pictures import Paper, fitted, titled
from packer.reports.report_data import CodeHistogram

MOST_BARS = 63
ROW_HEIGHT = 200.0  # of panels


def histograms_height(histograms: Sequence[CodeHistogram], width: float) -> float:
    return ROW_HEIGHT * -(-len(histograms) // _across(width))


def draw_histograms(histograms: Sequence[CodeHistogram], paper: Paper) -> None:
    """Draws three in a row on wide screens, two on narrow ones."""
    across = _across(paper.width)
    cell = paper.width / across
    for index, one in enumerate(histograms):
        x, y = paper.x + index % across * cell, paper.y + index // across * ROW_HEIGHT
        _draw_panel(one, Paper(paper.figure, x, y, cell - 16, ROW_HEIGHT))


def _across(width: float) -> int:
    return 3 if width > 600 else 2


def _draw_panel(one: CodeHistogram, paper: Paper) -> None:
    bars, per_bar, first = barred(one)
    axes = paper.figure.add_axes(paper.within(0, 44, 0, 34))
    gap = 1.0 if paper.width >= 4 * len(bars) else 0.0  # pixels
    thick = 1 - gap * len(bars) / paper.width
    drawn = axes.bar(range(len(bars)), bars, thick, color=CURVE, linewidth=0)
    for index, (bar, count) in enumerate(zip(drawn, bars, strict=True)):
        low = first + index * per_bar
        codes = f"code {low}" if per_bar == 1 else f"codes {low} to {low + per_bar - 1}"
        titled(bar, f"{codes}: {count:,}, {100 * count / sum(one.counts):.2f} %")
    axes.set(xlim=(-0.5, len(bars) - 0.5), yticks=[])
    axes.spines["left"].set_visible(False)
    last = first + len(bars) * per_bar - 1
    places = {0: first, len(bars) - 1: last}
    if first < 0 < last and paper.width > 120:
        places[-first // per_bar] = 0
    axes.set_xticks(list(places), [f"{code}" for code in places.values()], fontsize=11)
    start, end, *_ = axes.get_xticklabels() * 2  # with a single bar both are the same
    start.set_horizontalalignment("left")
    end.set_horizontalalignment("right")
    axes.tick_params(length=0)
    entropy = f"entropy {one.entropy_bits:.2f}, takes {one.bits_per_weight:.2f} bits"
    if fitted(entropy, 11, paper.width) != entropy:
        entropy = f"{one.entropy_bits:.2f} → {one.bits_per_weight:.2f} bits"
    name, height = fitted(one.tensor, 13.5, paper.width), axes.bbox.height  # bold letters are wider
    look: dict[str, Any] = {"transform": axes.transAxes}
    titled(axes.text(0, 1 + 28 / height, name, fontweight="bold", **look), one.tensor)
    titled(axes.text(0, 1 + 12 / height, entropy, fontsize=11, color=SOFT, **look), one.format)


def barred(one: CodeHistogram) -> tuple[list[int], int, int]:
    """(heights, codes per bar, first code) without the outermost thousandth of the codes."""
    passed = np.cumsum(one.counts)
    spare = sum(one.counts) / 2000  # at either end
    low = int(np.searchsorted(passed, spare, "right"))
    high = int(np.searchsorted(passed, passed[-1] - spare))
    counts = one.counts[low : high + 1]
    per_bar = -(-len(counts) // MOST_BARS)
    bars = [sum(counts[at : at + per_bar]) for at in range(0, len(counts), per_bar)]
    return bars, per_bar, one.first + low
