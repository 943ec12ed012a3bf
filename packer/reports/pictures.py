"""Figures as a picture file: the drawings of a page, put side by side by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packer.reports.agg import Circle, Rectangle, new_figure, own_style
from packer.reports.drawing import COLOURS, Box, Dot, Drawing, Figure, Line, Mark, Words
from packer.reports.plots import check_ending, save

PIXELS = 100.0  # of a drawing to an inch
WIDTH, MARGIN, HEADING = 960.0, 28.0, 34.0
POINTS = 72 / PIXELS


@dataclass(frozen=True)
class Placed:
    """A drawing with its heading, and its upper left corner on the picture."""

    x: float
    y: float
    heading: str
    drawing: Drawing


@own_style()
def plot_figures(path: str, figures: Sequence[Figure]) -> None:
    """All figures in one picture: one column, or two where there are three or more.

    Raises OutputError: an ending that is no picture's, or the file cannot be written.
    """
    check_ending(path)
    placed, width, height = arranged(figures)
    canvas = new_figure(width / PIXELS, height / PIXELS)
    axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    for one in placed:
        _draw(axes, one.x, one.y + 18, Words(0, 0, one.heading, 16, bold=True))
        for mark in one.drawing.marks:
            _draw(axes, one.x, one.y + HEADING, mark)
    save(axes, path)


def arranged(figures: Sequence[Figure]) -> tuple[list[Placed], float, float]:
    """(places, width, height): each figure goes to the column that is shorter so far."""
    columns = 2 if len(figures) > 2 else 1
    depths = [MARGIN] * columns
    placed = []
    for figure in figures:
        drawing = figure.draw(WIDTH)
        column = depths.index(min(depths))
        x = MARGIN + column * (WIDTH + 2 * MARGIN)
        placed.append(Placed(x, depths[column], figure.heading, drawing))
        depths[column] += HEADING + drawing.height + 1.5 * MARGIN
    return placed, columns * (WIDTH + 2 * MARGIN), max(depths)


def _draw(axes: Any, x: float, y: float, mark: Mark) -> None:
    if isinstance(mark, Box):
        edge = {"edgecolor": "white", "linewidth": 0.7} if mark.outline else {"linewidth": 0}
        corner = (x + mark.x, y + mark.y)
        axes.add_patch(
            Rectangle(corner, mark.width, mark.height, facecolor=paint(mark.fill), **edge)
        )
    elif isinstance(mark, Line):
        across, down = zip(*((x + px, y + py) for px, py in mark.points), strict=True)
        dashes = (0, (4, 3)) if mark.dashed else "-"
        width = mark.width * POINTS
        axes.plot(across, down, color=paint(mark.colour), linewidth=width, linestyle=dashes)
    elif isinstance(mark, Dot):
        face, edge_colour = paint(mark.colour), "white"
        if mark.hollow:
            face, edge_colour = "white", paint(mark.colour)
        place = (x + mark.x, y + mark.y)
        axes.add_patch(
            Circle(place, mark.radius, facecolor=face, edgecolor=edge_colour, linewidth=1, zorder=3)
        )
    else:
        _write(axes, x, y, mark)


def _write(axes: Any, x: float, y: float, mark: Words) -> None:
    axes.text(
        x + mark.x,
        y + mark.y,
        "".join(letter if letter.isprintable() else "\ufffd" for letter in mark.text),
        fontsize=mark.size * POINTS * 0.95,
        color=paint(mark.colour),
        ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
        va="baseline",
        rotation=90 if mark.turned else 0,
        rotation_mode="anchor",
        fontweight="bold" if mark.bold else "normal",
        parse_math=False,
        zorder=4,
    )


def paint(colour: str) -> str:
    """A colour on light paper."""
    return COLOURS[colour][0] if colour in COLOURS else colour
