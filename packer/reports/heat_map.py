"""Bits per weight of every tensor: a row per layer, a column per role, colours from few to many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from packer.reports.drawing import Box, Drawing, Mark, Words, fitted, text_on, width_of
from packer.reports.report import Report, TensorRow
from packer.reports.role_colours import in_order
from packer.reports.treemap import tensor_title

# Dark to light, even steps of lightness: few bits are dark, in print too.
RAMP = ("#1b1b4f", "#2b3f8c", "#26699d", "#248d96", "#4cb17d", "#a2cd5a", "#f3e35c")
SHARE_THAT_COUNTS = 0.01  # of the bytes: smaller tensors do not stretch the colours
LEFT = 44.0


@dataclass(frozen=True)
class Colouring:
    """Colours over log bits per weight; what lies beyond has the colour of the end."""

    low: float
    high: float

    def colour(self, bits: float) -> str:
        span = math.log(self.high / self.low)
        place = math.log(max(bits, 1e-9) / self.low) / span if span > 0 else 0.5
        at = min(max(place, 0.0), 1.0) * (len(RAMP) - 1)
        index = min(int(at), len(RAMP) - 2)
        return mixed(RAMP[index], RAMP[index + 1], at - index)


def colouring_of(report: Report) -> Colouring:
    """From the fewest to the most bits that a tensor of some weight has."""
    total = sum(row.size_bytes for row in report.rows)
    counted = [
        row.bits_per_weight
        for row in report.rows
        if row.bits_per_weight and row.size_bytes >= SHARE_THAT_COUNTS * total
    ]
    if not counted:
        return Colouring(1.0, 16.0)
    return Colouring(min(counted), max(counted))


def mixed(first: str, second: str, share: float) -> str:
    """A colour between two of #rrggbb."""
    pairs = [(int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def draw_heat_map(report: Report, width: float) -> Drawing:
    """A cell per layer and role, a strip in it for each of its tensors."""
    rows = [row for row in report.rows if row.elements]
    roles = in_order({row.role for row in rows})
    layers: list[int | None] = sorted(
        {row.layer for row in rows}, key=lambda layer: -1 if layer is None else layer
    )
    cell = (width - LEFT) / max(len(roles), 1)
    deep = 30.0 if len(layers) <= 24 else 16.0
    marks, top = _head(roles, cell)
    colouring = colouring_of(report)
    total = sum(row.size_bytes for row in report.rows)
    for index, layer in enumerate(layers):
        y = top + index * deep
        name = "none" if layer is None else f"{layer}"
        marks.append(Words(LEFT - 8, y + deep / 2 + 4, name, 12, "soft", "end"))
        for column, role in enumerate(roles):
            members = [row for row in rows if row.layer == layer and row.role == role]
            x = LEFT + column * cell
            marks += _cell(members, x, y, cell - 2, deep - 2, colouring, total)
    marks.append(Words(LEFT - 8, top - 8, "layer", 12, "soft", "end"))
    bottom = top + len(layers) * deep
    marks += _scale(colouring, width, bottom + 12)
    return Drawing(width, bottom + 48, tuple(marks))


def _head(roles: Sequence[str], cell: float) -> tuple[list[Mark], float]:
    """(names of the columns, the height they take): in two lines, or upright where the cells are
    too narrow.
    """
    parts = {role: role.replace("-", "- ", 1).split(" ") for role in roles}
    longest = max((width_of(part, 12) for role in roles for part in parts[role]), default=0.0)
    turned = longest > cell - 2
    top = max((width_of(role, 12) for role in roles), default=0.0) + 14 if turned else 38.0
    marks: list[Mark] = []
    for column, role in enumerate(roles):
        middle = LEFT + (column + 0.5) * cell - 1
        if turned:
            marks.append(Words(middle + 4, top - 8, role, 12, "soft", turned=True))
            continue
        for line, part in enumerate(reversed(parts[role])):
            marks.append(Words(middle, top - 8 - 15 * line, part, 12, "soft", "middle"))
    return marks, top


def _cell(
    members: Sequence[TensorRow],
    x: float,
    y: float,
    width: float,
    height: float,
    colouring: Colouring,
    total: int,
) -> list[Mark]:
    if not members:
        return [Box(x, y, width, height, "wash")]
    strip = width / len(members)
    marks: list[Mark] = []
    for index, row in enumerate(members):
        colour = colouring.colour(row.bits_per_weight or 0.0)
        marks.append(Box(x + index * strip, y, strip, height, colour, tensor_title(row, total)))
    bits = 8 * sum(row.size_bytes for row in members) / sum(row.elements for row in members)
    text = f"{bits:.2f}" if bits < 10 else f"{bits:.1f}"
    size = 12.0 if width >= 36 else 9.0
    if height >= 13 and width_of(text, size) <= width:
        ink = text_on(colouring.colour(bits))
        marks.append(Words(x + width / 2, y + height / 2 + 4, text, size, ink, "middle"))
    return marks


def _scale(colouring: Colouring, width: float, y: float) -> list[Mark]:
    """The colours, with the bits per weight at either end."""
    span, parts = min(width - LEFT, 320.0), 64
    marks: list[Mark] = []
    for part in range(parts):
        place = (part + 0.5) / parts
        bits = colouring.low * (colouring.high / colouring.low) ** place
        marks.append(
            Box(LEFT + part * span / parts, y, span / parts + 0.5, 10, colouring.colour(bits))
        )
    low, high = f"{colouring.low:.2f} bits per weight or fewer", f"{colouring.high:.2f} or more"
    if width_of(low + high, 11.5) > span:
        low = f"≤ {colouring.low:.2f}"
    marks.append(Words(LEFT, y + 25, fitted(low, 11.5, span), 11.5, "soft"))
    marks.append(Words(LEFT + span, y + 25, high, 11.5, "soft", "end"))
    return marks
