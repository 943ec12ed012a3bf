"""A heat map of the bits per weight of every tensor: a row per layer, a column per role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packer.reports.agg import Axes, LogNorm, Rectangle, ScalarMappable, colormaps
from packer.reports.colours import SOFT, WASH, in_order
from packer.reports.pictures import LETTER, Paper, text_on, titled
from packer.reports.report import Report, TensorRow
from packer.reports.treemap import tensor_title

ODD_SHARE = 0.01  # of the bytes, at either end: so few do not stretch the colours
LEFT, BELOW = 44.0, 44.0  # for the layers, and for the scale
UNIT = 130.0  # right of the scale
COLOURS = 48  # few enough for the scale to be drawn as shapes instead of an image


def heat_map_height(report: Report, width: float) -> float:
    layers, roles = _grid(report)
    return _head(roles, width)[1] + _row_height(layers) * len(layers) + BELOW


def draw_heat_map(report: Report, paper: Paper) -> None:
    """Draws a cell per layer and role, with a strip for each of its tensors."""
    layers, roles = _grid(report)
    labels, top = _head(roles, paper.width)
    axes = paper.figure.add_axes(paper.within(LEFT, top, 0, BELOW))
    axes.set(xlim=(0, len(roles)), ylim=(len(layers), 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.xaxis.tick_top()
    upright = labels == roles
    axes.set_xticks([at + 0.5 for at in range(len(roles))], labels, rotation=90 if upright else 0)
    names = ["none" if layer is None else f"{layer}" for layer in layers]
    axes.set_yticks([at + 0.5 for at in range(len(layers))], names)
    corner: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("layer", (0, 1), (-6, 6), color=SOFT, ha="right", **corner)
    colours = _colours(report)
    total = sum(row.size_bytes for row in report.rows)
    for down, layer in enumerate(layers):
        for across, role in enumerate(roles):
            members = [
                row
                for row in report.rows
                if row.elements and (row.layer, row.role) == (layer, role)
            ]
            _draw_cell(axes, members, across, down, colours, total)
    _draw_scale(paper, colours)


def _grid(report: Report) -> tuple[list[int | None], list[str]]:
    """(layers, roles) of all tensors with elements; None (no layer) comes first."""
    rows = [row for row in report.rows if row.elements]
    layers = sorted({row.layer for row in rows}, key=lambda one: -1 if one is None else one)
    return layers, in_order({row.role for row in rows})


def _row_height(layers: Sequence[int | None]) -> float:
    return 30.0 if len(layers) <= 24 else 16.0


def _head(roles: list[str], width: float) -> tuple[list[str], float]:
    """(names of the columns, their height): in two lines, or rotated if columns are narrow."""
    lines = [role.replace("-", "-\n", 1) for role in roles]
    longest = max(len(part) for line in lines for part in line.split("\n"))
    if longest * 12 * LETTER <= (width - LEFT) / len(roles):
        return lines, 38.0
    return roles, max(map(len, roles)) * 12 * LETTER + 14


def _colours(report: Report) -> ScalarMappable:
    """Colours from the fewest (dark) to the most bits per weight, of all but the odd bytes."""
    counted = [(row.bits_per_weight, row.size_bytes) for row in report.rows if row.bits_per_weight]
    low = _end_of(sorted(counted)) or 1.0
    high = max(_end_of(sorted(counted, reverse=True)) or 16.0, 1.001 * low)
    return ScalarMappable(LogNorm(low, high), colormaps["viridis"].resampled(COLOURS))


def _end_of(counted: Sequence[tuple[float, int]]) -> float | None:
    """Of (bits per weight, bytes), the first bits per weight after the odd bytes."""
    odd = ODD_SHARE * sum(size for _, size in counted)
    for bits, size in counted:
        odd -= size
        if odd < 0:
            return bits
    return None


def _colour(colours: ScalarMappable, bits: float) -> Any:
    positive: Any = max(bits, 1e-9)  # for the logarithm
    return colours.cmap(colours.norm(positive))


def _draw_cell(
    axes: Axes,
    members: Sequence[TensorRow],
    x: int,
    y: int,
    colours: ScalarMappable,
    total: int,
) -> None:
    column, row = axes.bbox.width / axes.get_xlim()[1], axes.bbox.height / axes.get_ylim()[0]
    width, height = 1 - 2 / column, 1 - 2 / row
    if not members:
        axes.add_patch(Rectangle((x, y), width, height, facecolor=WASH))
        return
    strip = width / len(members)
    for index, one in enumerate(members):
        colour = _colour(colours, one.bits_per_weight or 0.0)
        box = Rectangle((x + index * strip, y), strip, height, facecolor=colour)
        titled(box, tensor_title(one, total))
        axes.add_patch(box)
    bits = 8 * sum(one.size_bytes for one in members) / sum(one.elements for one in members)
    text, size = f"{bits:.2f}" if bits < 10 else f"{bits:.1f}", 12 if column >= 38 else 9
    if len(text) * LETTER * size <= column - 2:
        ink = text_on(_colour(colours, bits))
        place = x + width / 2, y + height / 2
        axes.text(*place, text, fontsize=size, color=ink, ha="center", va="center_baseline")


def _draw_scale(paper: Paper, colours: ScalarMappable) -> None:
    """Draws the colour bar, with the bits per weight at both ends and between."""
    span = min(paper.width - LEFT - UNIT, 320.0)
    place = paper.within(LEFT, paper.height - BELOW + 12, paper.width - LEFT - span, BELOW - 22)
    axes = paper.figure.add_axes(place)
    low, high = colours.get_clim()
    bar = paper.figure.colorbar(colours, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # no seams
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=11.5, pad=5)
    between = [low * (high / low) ** share for share in (0.25, 0.5, 0.75)]
    names = [f"≤ {low:.2f}", *(f"{bits:.2f}" for bits in between), f"≥ {high:.2f}"]
    axes.set_xticks([low, *between, high], names)
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("bits per weight", (1, 0.5), (12, 0), color=SOFT, va="center", **beside)
