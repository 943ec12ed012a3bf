"""Figures as plain values: marks at places in pixels, y downwards. Drawn as SVG or by matplotlib.

A colour is a name of COLOURS, which light and dark pages show each in their own way, or #rrggbb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

# name -> (on light paper, on dark paper)
COLOURS = {
    "ink": ("#1d2733", "#e6ebf1"),
    "soft": ("#5b6773", "#9aa7b5"),
    "line": ("#dfe4ea", "#37424e"),
    "paper": ("#ffffff", "#161c23"),
    "wash": ("#f6f8fa", "#0f1419"),
    "accent": ("#c2413b", "#ff8a7d"),
    "bound": ("#6b7785", "#93a1b0"),
    "curve": ("#2f6db5", "#7fb2ee"),
}
CHARACTER = 0.58  # of the size: how wide a letter is on average

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A filled rectangle. title: what a pointer over it tells. outline: a thin line of paper."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""
    outline: bool = False


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: tuple[Point, ...]
    colour: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A circle; hollow ones are a ring of their colour around paper."""

    x: float
    y: float
    radius: float
    colour: str
    title: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Words:
    """Text whose baseline starts, is centred or ends at a point. turned: upwards, read from below.

    title: what a pointer over it tells.
    """

    x: float
    y: float
    text: str
    size: float = 12.0
    colour: str = "ink"
    anchor: str = "start"  # start, middle, end
    bold: bool = False
    turned: bool = False
    title: str = ""


Mark = Box | Line | Dot | Words


@dataclass(frozen=True)
class Drawing:
    """Marks in the order in which they cover each other, on [width] × [height] pixels."""

    width: float
    height: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Figure:
    """A drawing for any width in pixels, with what it shows in words."""

    heading: str
    caption: str
    draw: Callable[[float], Drawing]


def width_of(text: str, size: float) -> float:
    """About how wide a text is."""
    return CHARACTER * size * len(text)


def fitted(text: str, size: float, width: float) -> str:
    """The text where it fits; else its beginning and end, or nothing."""
    letters = int(width / (CHARACTER * size))
    if len(text) <= letters:
        return text
    if letters < 4:
        return ""
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}"


def text_on(fill: str) -> str:
    """White or nearly black, whichever is read more easily on #rrggbb."""
    red, green, blue = (_linear(int(fill[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.25 else "#10161d"


def _linear(channel: float) -> float:
    """Light of an sRGB channel, 0 to 1."""
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def legend(
    keys: list[tuple[str, Mark]], width: float, x: float = 0.0, size: float = 12.0
) -> tuple[list[Mark], float]:
    """(marks, height) of keys side by side, as many lines as the width needs.

    keys: (words, a mark drawn for a place of 14 × 14 pixels).
    """
    marks: list[Mark] = []
    at, line, step = x, 0.0, size + 8
    for words, mark in keys:
        needed = 20 + width_of(words, size) + 14
        if at > x and at + needed > width + 14:
            at, line = x, line + step
        marks.append(moved(mark, at, line))
        marks.append(Words(at + 20, line + 11.5, words, size, "soft"))
        at += needed
    return marks, (line + step) if keys else 0.0


def moved(mark: Mark, x: float, y: float) -> Mark:
    """The same mark elsewhere."""
    if isinstance(mark, Line):
        return replace(mark, points=tuple((px + x, py + y) for px, py in mark.points))
    return replace(mark, x=mark.x + x, y=mark.y + y)


def key_box(colour: str) -> Box:
    """A legend's key of an area."""
    return Box(0, 1, 13, 13, colour)


def key_dot(colour: str, hollow: bool = False) -> Dot:
    """A legend's key of points."""
    return Dot(7, 7.5, 5, colour, hollow=hollow)


def key_line(colour: str, dashed: bool = False) -> Line:
    """A legend's key of a line."""
    return Line(((0, 7.5), (14, 7.5)), colour, 2, dashed)
