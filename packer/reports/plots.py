"""Panels of several plots: bytes per layer and role, for pictures of a training run."""

from __future__ import annotations

import numpy as np

from packer.reports.agg import Axes, EngFormatter, Figure, new_figure
from packer.reports.colours import ROLE_COLOURS
from packer.reports.report import Report, TensorRow, by_role

SMALL_SHARE = 0.01  # roles below one percent of the bytes share one colour


def new_panels(across: int, down: int = 1) -> tuple[Figure, list[Axes]]:
    """(figure, axes row by row); inside `own_style`."""
    figure = new_figure(540 * across, 345 * down, constrained=True)
    rows = figure.subfigures(down, 1, squeeze=False).ravel()  # a legend widens its own row
    return figure, [axes for row in rows for axes in row.subplots(1, across, squeeze=False)[0]]


def draw_bytes(axes: Axes, report: Report) -> None:
    """Draws bytes per layer, stacked by role; tensors of no layer come first."""
    layers: list[int | None] = sorted(
        {row.layer for row in report.rows}, key=lambda layer: -1 if layer is None else layer
    )
    names = ["no layer" if layer is None else str(layer) for layer in layers]
    bottom = np.zeros(len(layers))
    for role, members in _roles_to_draw(report):
        heights = np.array(
            [sum(row.size_bytes for row in members if row.layer == layer) for layer in layers]
        )
        colour = ROLE_COLOURS.get(role, "#9aa3ad")
        axes.bar(names, heights, bottom=bottom, label=role, width=0.75, color=colour)
        bottom += heights
    axes.set_xlabel("layer")
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_title(
        f"{report.total_bytes:,} bytes" + (f" of {report.cap_bytes:,}" * bool(report.cap_bytes))
    )
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _roles_to_draw(report: Report) -> list[tuple[str, list[TensorRow]]]:
    """Roles, largest first; the small ones together as 'other roles'."""
    total = sum(row.size_bytes for row in report.rows)
    large = [share.name for share in by_role(report) if share.size_bytes >= SMALL_SHARE * total]
    grouped = [(role, [row for row in report.rows if row.role == role]) for role in large]
    small = [row for row in report.rows if row.role not in large]
    return grouped + ([("other roles", small)] if small else [])
