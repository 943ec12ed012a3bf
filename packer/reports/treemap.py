"""A treemap of bytes: a block per layer, in it a box per tensor, coloured by role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import squarify

from packer.reports.agg import Axes, Patch, Rectangle
from packer.reports.colours import PAPER, ROLE_COLOURS, SOFT, in_order
from packer.reports.pictures import Paper, fitted, legend, text_on, titled
from packer.reports.report import Report, TensorRow

GAP = 3.0  # around the block of a layer
HEAD = 16.0  # a layer's name above its tensors
SMALLEST_HEADED = 40.0  # width and height; smaller blocks have no heading
SMALLEST_SHARE = 1e-6  # of a block; smaller tensors are drawn with this area

Place = tuple[float, float, float, float]  # x, y, width, height


def treemap_height(width: float) -> float:
    return (0.51 if width > 600 else 1.55) * width


def draw_treemap(report: Report, paper: Paper) -> None:
    """Draws every tensor that takes bytes; its tooltip has its name, size and choice."""
    roles = in_order({row.role for row in report.rows if row.size_bytes})
    columns, top = paper.columns(roles)
    axes = paper.canvas(top + 6)
    keys = [Patch(color=ROLE_COLOURS[role], label=role) for role in roles]
    legend(axes, columns, 0, 6, handles=keys, handleheight=1.0)
    layers = _layers(report)
    sizes = [sum(row.size_bytes for row in rows) for _, rows in layers]
    places = squarified(sizes, (0, 0, paper.width, paper.height - top - 6))
    for (title, rows), place in zip(layers, places, strict=True):
        _draw_layer(axes, title, rows, place, sum(sizes))


def _layers(report: Report) -> list[tuple[str, list[TensorRow]]]:
    """(name, tensors by size) of every layer that takes bytes, the largest layer first."""
    grouped: dict[str, list[TensorRow]] = {}
    for row in sorted(report.rows, key=lambda row: (-row.size_bytes, row.name)):
        if row.size_bytes:
            name = "outside the layers" if row.layer is None else f"layer {row.layer}"
            grouped.setdefault(name, []).append(row)
    return sorted(grouped.items(), key=lambda one: -sum(row.size_bytes for row in one[1]))


def squarified(sizes: Sequence[int], place: Place) -> Iterator[Place]:
    """A rectangle for each size. sizes: in descending order."""
    smallest = SMALLEST_SHARE * sum(sizes)
    areas = squarify.normalize_sizes([max(size, smallest) for size in sizes], *place[2:])
    for one in squarify.squarify(areas, *place):
        yield one["x"], one["y"], one["dx"], one["dy"]


def _draw_layer(
    axes: Axes, title: str, rows: Sequence[TensorRow], place: Place, total: int
) -> None:
    x, y, width, height = place
    head = HEAD if min(width, height) >= SMALLEST_HEADED else 0.0
    gap = GAP if min(width, height) > 2 * GAP else 0.0
    inner = (x + gap / 2, y + gap / 2 + head, width - gap, height - gap - head)
    if head:
        words = f"{title} · {sum(row.size_bytes for row in rows):,} bytes"
        words = words if fitted(words, 11.5, inner[2]) == words else title
        _write(axes, x + 2.5, inner[1] - 4, fitted(words, 11.5, inner[2]), SOFT, weight="bold")
    for row, where in zip(rows, squarified([row.size_bytes for row in rows], inner), strict=True):
        _draw_tensor(axes, row, where, total)


def _draw_tensor(axes: Axes, row: TensorRow, place: Place, total: int) -> None:
    x, y, width, height = place
    colour = ROLE_COLOURS[row.role]
    box = Rectangle((x, y), width, height, facecolor=colour, edgecolor=PAPER, linewidth=1)
    titled(box, tensor_title(row, total))
    axes.add_patch(box)
    if height >= 18 and (name := fitted(short_name(row), 11.5, width - 8)):
        _write(axes, x + 4, y + 13, name, text_on(colour))
        size = f"{row.size_bytes:,}"
        if height >= 32 and fitted(size, 11.5, width - 8) == size:
            _write(axes, x + 4, y + 27, size, text_on(colour))


def _write(axes: Axes, x: float, y: float, words: str, colour: str, weight: str = "normal") -> None:
    axes.text(x, y, words, fontsize=11.5, color=colour, fontweight=weight)


def short_name(row: TensorRow) -> str:
    """The name without its layer's prefix and without .weight."""
    name = row.name.removesuffix(".weight")
    marker = f".{row.layer}."
    return name.partition(marker)[2] or name if row.layer is not None else name


def tensor_title(row: TensorRow, total: int) -> str:
    """One tensor in a few lines: name, role, bytes, share, bits per weight, choice, damage."""
    bits = row.bits_per_weight
    parts = [
        f"{row.name} ({row.role})",
        f"{row.size_bytes:,} bytes, {100 * row.size_bytes / max(total, 1):.2f} %",
        *([] if bits is None else [f"{bits:.3f} bits per weight"]),
        row.choice,
        *([] if row.damage_bpb is None else [f"predicted damage {row.damage_bpb:.3g}"]),
    ]
    return "\n".join(parts)
