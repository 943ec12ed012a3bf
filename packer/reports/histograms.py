"""Histograms of codes, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from packer.reports.drawing import Box, Drawing, Line, Mark, Words, fitted
from packer.reports.evidence import CodeHistogram

MOST_BARS = 63


def draw_histograms(histograms: Sequence[CodeHistogram], width: float) -> Drawing:
    """Side by side on wide screens, two in a row on narrow ones."""
    across = 3 if width > 600 else 2
    cell, deep = width / across, 200.0
    marks: list[Mark] = []
    for index, one in enumerate(histograms):
        x, y = (index % across) * cell, (index // across) * deep
        marks += _panel(one, x, y, cell - 16, deep)
    lines = -(-len(histograms) // across)
    return Drawing(width, lines * deep, tuple(marks))


def _panel(one: CodeHistogram, x: float, y: float, width: float, deep: float) -> list[Mark]:
    bars, per_bar, first = barred(one)
    base, tallest = y + deep - 34, max(bars)
    entropy = f"entropy {one.entropy_bits:.2f}, takes {one.bits_per_weight:.2f} bits"
    if len(entropy) * 6.1 > width:
        entropy = f"{one.entropy_bits:.2f} → {one.bits_per_weight:.2f} bits"
    name = fitted(one.tensor, 12, width)
    marks: list[Mark] = [
        Words(x, y + 14, name, 12, "ink", bold=True, title=one.tensor),
        Words(x, y + 30, fitted(entropy, 11, width), 11, "soft", title=one.format),
    ]
    step = width / len(bars)
    for index, count in enumerate(bars):
        height = (base - y - 44) * count / tallest
        low = first + index * per_bar
        codes = f"code {low}" if per_bar == 1 else f"codes {low} to {low + per_bar - 1}"
        share = 100 * count / sum(one.counts)
        title = f"{codes}: {count:,}, {share:.2f} %"
        gap = 1.0 if step >= 4 else 0.0
        at = x + index * step
        marks.append(Box(at, base - height, step - gap, max(height, 0.6), "curve", title))
    marks.append(Line(((x, base), (x + width, base)), "soft"))
    last = first + len(bars) * per_bar - 1
    marks.append(Words(x, base + 15, f"{first}", 11, "soft"))
    marks.append(Words(x + width, base + 15, f"{last}", 11, "soft", "end"))
    if first < 0 < last and width > 120:
        zero = x + (-first // per_bar + 0.5) * step
        marks.append(Words(zero, base + 15, "0", 11, "soft", "middle"))
    return marks


def barred(one: CodeHistogram) -> tuple[list[int], int, int]:
    """(heights, codes per bar, first code) without the outermost thousandth of the codes."""
    low, high = _core(one.counts)
    counts = one.counts[low : high + 1]
    per_bar = -(-len(counts) // MOST_BARS)
    bars = [sum(counts[at : at + per_bar]) for at in range(0, len(counts), per_bar)]
    return bars, per_bar, one.first + low


def _core(counts: Sequence[int]) -> tuple[int, int]:
    spare = sum(counts) / 2000  # at either end
    low = high = 0
    passed = 0
    for index, count in enumerate(counts):
        if passed <= spare:
            low = index
        passed += count
        high = index
        if passed >= sum(counts) - spare:
            break
    return low, high
