"""Pictures of a page, each drawn by one function: as SVG inside the page, or all in one file.

Lengths are in pixels; y points down from the upper left corner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from packer.errors import OutputError
from packer.files import replacing
from packer.reports.agg import Artist, Axes, Figure, new_figure, own_style, to_rgb
from packer.reports.colours import NAMED
from packer.reports.html import Html, escaped, figure, readable

ENDINGS = (".png", ".svg", ".pdf")
WIDE, NARROW = 960.0, 360.0  # on a desktop and on a phone
MARGIN, HEADING = 28.0, 34.0  # between the pictures of a file
LETTER = 0.6  # average width of a letter, in units of the font size
TITLE, LINE_FEED = "title:", "\u2028"  # an id cannot hold a line feed
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Paper:
    """A rectangle on a figure: `width` × `height` from its upper left corner at (x, y)."""

    figure: Figure
    x: float
    y: float
    width: float
    height: float

    def within(self, left: float, top: float, right: float, bottom: float) -> Bounds:
        """The rectangle within these margins, as fractions of the figure as matplotlib wants."""
        across, down = self.figure.bbox.size
        width, height = self.width - left - right, self.height - top - bottom
        x, y = self.x + left, down - self.y - top - height
        return x / across, y / down, width / across, height / down

    def canvas(self, top: float) -> Axes:
        """Frameless axes in pixels, below a margin of `top`."""
        axes = self.figure.add_axes(self.within(0, top, 0, 0))
        axes.set(xlim=(0, self.width), ylim=(self.height - top, 0))
        axes.set_axis_off()
        return axes

    def columns(self, labels: Sequence[str]) -> tuple[int, float]:
        """(columns, height) of a legend of these labels, as wide as fits."""
        count = len(labels)
        while count > 1 and self._width_of(np.array_split(labels, count)) > self.width:
            count -= 1
        return max(count, 1), 20.0 * -(-len(labels) // max(count, 1))

    def _width_of(self, columns: Sequence[npt.NDArray[np.str_]]) -> float:
        return sum(12 * LETTER * max(map(len, labels)) + 40 for labels in columns)


@dataclass(frozen=True)
class Picture:
    """A picture of a page or a file. height: as a function of width; draw: on a paper of both."""

    heading: str
    caption: str
    height: Callable[[float], float]
    draw: Callable[[Paper], None]


def legend(axes: Axes, columns: int, x: float, y: float, **more: Any) -> None:
    """The legend above the axes, moved x pixels to the right and y pixels up."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(x / axes.bbox.width, 1 + y / axes.bbox.height),
        ncols=columns,
        borderaxespad=0,
        borderpad=0.0,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.35,
        **more,
    )


def titled(artist: Artist, words: str) -> None:
    """Sets the tooltip that a page shows for this artist."""
    lines = (readable(line) for line in words.split("\n"))
    artist.set_gid(TITLE + LINE_FEED.join(lines))


def fitted(text: str, size: float, width: float) -> str:
    """The text on one line if it fits; else its beginning and end, or nothing."""
    text = readable(text).replace("\n", "\ufffd")
    letters = int(width / (LETTER * size))
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}" if letters >= 4 else ""


def text_on(fill: Any) -> str:
    """Nearly white or nearly black, whichever contrasts more with the fill colour."""
    red, green, blue = (channel**2.2 for channel in to_rgb(fill))
    return "#fdfdfd" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.25 else "#10161d"


def figure_html(picture: Picture) -> Html:
    """The picture for wide and for narrow screens, of which the page shows one, and its caption."""
    drawings = []
    for kind, width in (("on-wide", WIDE), ("on-narrow", NARROW)):
        with own_style(f"{picture.heading} {width}"):
            drawn = new_figure(width, picture.height(width))
            picture.draw(Paper(drawn, 0, 0, width, picture.height(width)))
            drawings.append(f'<div class="{kind}">{inline_svg(drawn, picture.heading)}</div>\n')
    return figure(Html("".join(drawings)), picture.caption)


def inline_svg(figure: Figure, label: str) -> Html:
    """A figure as inline SVG, whose named colours follow the page's light or dark theme."""
    drawn = BytesIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for one in root.iter():
        one.tag = one.tag.rpartition("}")[2]  # HTML knows the elements of SVG without namespaces
        one.text, one.tail = (one.text or "").strip("\n ") or None, None
        one.attrib = {key.rpartition("}")[2]: value for key, value in one.attrib.items()}
        one.attrib.pop("clip-path", None)
        if style := one.get("style"):
            one.set("style", re.sub("#[0-9a-f]{6}", _variable, style))
        name = one.attrib.pop("id", "") if one.tag == "g" else ""  # other ids are used
        if name.startswith(TITLE):
            one.set("class", "titled")
            one.insert(0, ElementTree.Element("title"))
            one[0].text = name.removeprefix(TITLE).replace(LINE_FEED, "\n")
    parts = [ElementTree.tostring(one, "unicode") for one in root if one.tag == "g"]
    opening = f'<svg viewBox="{root.get("viewBox")}" role="img" aria-label="{escaped(label)}">'
    return Html(f"{opening}\n{''.join(parts)}\n</svg>")


def _variable(colour: re.Match[str]) -> str:
    """A named colour as the page's variable; other colours are the same in both themes."""
    return f"var(--{NAMED[colour[0]][0]})" if colour[0] in NAMED else colour[0]


def plot_pictures(path: str, pictures: Sequence[Picture]) -> None:
    """Writes all pictures to one file: one column, or two for three or more pictures.

    Raises OutputError: not the ending of a picture, or the file cannot be written.
    """
    check_ending(path)
    columns = 2 if len(pictures) > 2 else 1
    depths, places = [MARGIN] * columns, []
    for one in pictures:
        column = depths.index(min(depths))
        places.append((MARGIN + column * (WIDE + 2 * MARGIN), depths[column] + HEADING))
        depths[column] += HEADING + one.height(WIDE) + 1.5 * MARGIN
    with own_style():
        height = max(depths)
        figure = new_figure(columns * (WIDE + 2 * MARGIN), height)
        for one, (x, y) in zip(pictures, places, strict=True):
            where = x / figure.bbox.width, 1 - (y - 16) / height
            figure.text(*where, one.heading, fontsize=16, fontweight="bold")
            one.draw(Paper(figure, x, y, WIDE, one.height(WIDE)))
        save(figure, path)


def check_ending(path: str) -> None:
    """Raises OutputError: `path` does not have the ending of a picture."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise OutputError(f"{path}: pictures are written as {', '.join(ENDINGS)}; name such a file")


def save(figure: Figure, path: str) -> None:
    """Writes a figure in the format of the path's ending, all or nothing; inside `own_style`.

    The file holds no date and no random id: the same picture gives the same bytes. Raises
    OutputError.
    """
    for artist in figure.findobj():
        artist.set_gid(None)  # tooltips are for pages
    ending = Path(path).suffix.lower()[1:]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending, {})
    with replacing(path) as temporary:
        figure.savefig(temporary, format=ending, metadata=undated)
