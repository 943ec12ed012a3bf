"""Drawings as SVG inside a page, each mark with its title for the pointer."""

from __future__ import annotations

from packer.reports.drawing import COLOURS, Box, Dot, Drawing, Figure, Line, Mark, Words
from packer.reports.html import Html, escaped

WIDE, NARROW = 960.0, 360.0  # what the page shows on a desk and on a phone


def figure(one: Figure) -> Html:
    """The figure for wide and for narrow screens, of which a page shows one, and its caption."""
    wide, narrow = (svg(one.draw(width), one.heading) for width in (WIDE, NARROW))
    return Html(
        f'<figure><div class="on-wide">{wide}</div>\n<div class="on-narrow">{narrow}</div>\n'
        f"<figcaption>{escaped(one.caption)}</figcaption></figure>"
    )


def svg(drawing: Drawing, label: str) -> Html:
    """One drawing; colours by name follow the page's light or dark paper."""
    marks = "\n".join(_mark(mark) for mark in drawing.marks)
    size = f"{_n(drawing.width)} {_n(drawing.height)}"
    return Html(
        f'<svg viewBox="0 0 {size}" role="img" aria-label="{escaped(label)}">\n{marks}\n</svg>'
    )


def _mark(mark: Mark) -> str:
    if isinstance(mark, Box):
        kind = ' class="cut"' if mark.outline else ""
        place = f'x="{_n(mark.x)}" y="{_n(mark.y)}" width="{_n(mark.width)}"'
        return _titled(
            f'rect{kind} {place} height="{_n(mark.height)}" style="fill:{paint(mark.fill)}"',
            mark.title,
        )
    if isinstance(mark, Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark.points)
        dashes = ";stroke-dasharray:5 4" if mark.dashed else ""
        style = f"fill:none;stroke:{paint(mark.colour)};stroke-width:{_n(mark.width)}{dashes}"
        return f'<polyline points="{points}" style="{style}"/>'
    if isinstance(mark, Dot):
        return _dot(mark)
    return _words(mark)


def _dot(mark: Dot) -> str:
    place = f'cx="{_n(mark.x)}" cy="{_n(mark.y)}" r="{_n(mark.radius)}"'
    paints = f"fill:{paint(mark.colour)};stroke:{paint('paper')};stroke-width:1.5"
    if mark.hollow:
        paints = f"fill:{paint('paper')};stroke:{paint(mark.colour)};stroke-width:2"
    return _titled(f'circle {place} style="{paints}"', mark.title)


def _words(mark: Words) -> str:
    place = f'x="{_n(mark.x)}" y="{_n(mark.y)}"'
    if mark.turned:
        place = f'transform="translate({_n(mark.x)} {_n(mark.y)}) rotate(-90)"'
    weight = ";font-weight:600" if mark.bold else ""
    style = f"fill:{paint(mark.colour)};font-size:{_n(mark.size)}px;text-anchor:{mark.anchor}"
    title = f"<title>{escaped(mark.title)}</title>" if mark.title else ""
    return f'<text {place} style="{style}{weight}">{title}{escaped(mark.text)}</text>'


def _titled(opening: str, title: str) -> str:
    name = opening.partition(" ")[0]
    return f"<{opening}><title>{escaped(title)}</title></{name}>" if title else f"<{opening}/>"


def paint(colour: str) -> str:
    """A colour as CSS."""
    return f"var(--{colour})" if colour in COLOURS else colour


def _n(value: float) -> str:
    """A tenth of a pixel is fine enough."""
    return f"{value:.1f}".removesuffix(".0")
