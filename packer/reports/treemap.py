"""Bytes as areas: a block per layer, in it a box per tensor, coloured by role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packer.reports.drawing import (
    Box,
    Drawing,
    Mark,
    Words,
    fitted,
    key_box,
    legend,
    text_on,
    width_of,
)
from packer.reports.report import Report, TensorRow
from packer.reports.role_colours import ROLE_COLOURS, in_order

GAP = 3.0  # around the block of a layer
HEAD = 16.0  # a layer's name above its tensors
SMALLEST_HEADED = 40.0  # pixels of width and height; a smaller block has no name over it


@dataclass(frozen=True)
class Place:
    """A rectangle of the map."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height

    def inset(self, gap: float, head: float) -> Place:
        """What is left inside a border, and a strip at the top; never less than nothing."""
        width, height = max(self.width - gap, 0.0), max(self.height - gap - head, 0.0)
        return Place(self.x + gap / 2, self.y + gap / 2 + head, width, height)


def draw_treemap(report: Report, width: float) -> Drawing:
    """Every tensor that takes bytes, with its name, size and choice under the pointer."""
    roles = in_order({row.role for row in report.rows if row.size_bytes})
    marks, top = legend([(role, key_box(ROLE_COLOURS[role])) for role in roles], width)
    height = 0.46 * width if width > 600 else 1.35 * width
    whole = Place(0, top + 4, width, height)
    total = max(sum(row.size_bytes for row in report.rows), 1)
    layers = _layers(report)
    sizes = [sum(row.size_bytes for row in rows) for _, rows in layers]
    for (title, rows), place in zip(layers, squarified(sizes, whole), strict=True):
        marks += _layer(title, rows, place, total)
    return Drawing(width, whole.y + height, tuple(marks))


def _layers(report: Report) -> list[tuple[str, list[TensorRow]]]:
    """(name, tensors by size) of every layer that takes bytes, the largest layer first."""
    grouped: dict[int | None, list[TensorRow]] = {}
    for row in report.rows:
        if row.size_bytes:
            grouped.setdefault(row.layer, []).append(row)
    named = [
        (
            "outside the layers" if layer is None else f"layer {layer}",
            sorted(rows, key=lambda row: (-row.size_bytes, row.name)),
        )
        for layer, rows in grouped.items()
    ]
    return sorted(named, key=lambda one: (-sum(row.size_bytes for row in one[1]), one[0]))


def _layer(title: str, rows: Sequence[TensorRow], place: Place, total: int) -> list[Mark]:
    headed = min(place.width, place.height) >= SMALLEST_HEADED
    inner = place.inset(GAP, HEAD if headed else 0.0)
    marks: list[Mark] = []
    if headed:
        size = sum(row.size_bytes for row in rows)
        words = f"{title} · {size:,} bytes"
        if width_of(words, 11.5) > inner.width:
            words = title
        words = fitted(words, 11.5, inner.width)
        marks.append(Words(inner.x + 1, inner.y - 4, words, 11.5, "soft", bold=True))
    places = squarified([row.size_bytes for row in rows], inner)
    for row, where in zip(rows, places, strict=True):
        marks += _tensor(row, where, total)
    return marks


def _tensor(row: TensorRow, place: Place, total: int) -> list[Mark]:
    colour, title = ROLE_COLOURS[row.role], tensor_title(row, total)
    marks: list[Mark] = [
        Box(place.x, place.y, place.width, place.height, colour, title, outline=True)
    ]
    room = place.width - 8
    if place.height >= 18 and (name := fitted(short_name(row), 11.5, room)):
        ink = text_on(colour)
        marks.append(Words(place.x + 4, place.y + 13, name, 11.5, ink))
        size = f"{row.size_bytes:,}"
        if place.height >= 32 and width_of(size, 11) <= room:
            marks.append(Words(place.x + 4, place.y + 27, size, 11, ink))
    return marks


def short_name(row: TensorRow) -> str:
    """The name without what says its layer, and without .weight."""
    name = row.name.removesuffix(".weight")
    marker = f".{row.layer}."
    return name.partition(marker)[2] or name if row.layer is not None else name


def tensor_title(row: TensorRow, total: int) -> str:
    """One tensor in a line: name, role, bytes, share, bits per weight, choice, damage."""
    bits = row.bits_per_weight
    parts = [
        f"{row.name} ({row.role})",
        f"{row.size_bytes:,} bytes, {100 * row.size_bytes / max(total, 1):.2f} %",
        *([] if bits is None else [f"{bits:.3f} bits per weight"]),
        row.choice,
        *([] if row.damage_bpb is None else [f"predicted damage {row.damage_bpb:.3g}"]),
    ]
    return "\n".join(parts)


def squarified(sizes: Sequence[float], whole: Place) -> list[Place]:
    """A rectangle for each size, areas in proportion, as square as can be (Bruls, Huizing and van
    Wijk, "Squarified Treemaps", 2000). Sizes are positive and do not increase.
    """
    places: list[Place] = []
    total = sum(sizes)
    scale = whole.area / total if total else 0.0
    rest, start = whole, 0
    while start < len(sizes):
        side, count = min(rest.width, rest.height), 1
        while start + count < len(sizes) and _worst(
            sizes[start : start + count + 1], side, scale
        ) <= _worst(sizes[start : start + count], side, scale):
            count += 1
        row, rest = _placed(sizes[start : start + count], rest, scale)
        places += row
        start += count
    return places


def _worst(sizes: Sequence[float], side: float, scale: float) -> float:
    """The largest ratio of sides in a row of these sizes along a side."""
    area = sum(sizes) * scale
    if not area or not side:
        return float("inf")
    return max(side**2 * sizes[0] * scale / area**2, area**2 / (side**2 * sizes[-1] * scale))


def _placed(sizes: Sequence[float], rest: Place, scale: float) -> tuple[list[Place], Place]:
    """(places of one row along the shorter side, what is left)."""
    area = sum(sizes) * scale
    upright = rest.width >= rest.height
    side = rest.height if upright else rest.width
    depth = min(area / side, rest.width if upright else rest.height) if side else 0.0
    places, at = [], 0.0
    for size in sizes:
        length = side * size / sum(sizes)
        if upright:
            places.append(Place(rest.x, rest.y + at, depth, length))
        else:
            places.append(Place(rest.x + at, rest.y, length, depth))
        at += length
    if upright:
        return places, Place(rest.x + depth, rest.y, max(rest.width - depth, 0.0), rest.height)
    return places, Place(rest.x, rest.y + depth, rest.width, max(rest.height - depth, 0.0))
