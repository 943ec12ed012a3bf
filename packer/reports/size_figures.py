"""Two figures: the size/damage curve with the plan, the bound and compared files; and predicted
against measured damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packer.planning.damage_fit import DamageFit
from packer.reports.agg import Axes, Axis, EngFormatter, LogLocator, NullLocator, StrMethodFormatter
from packer.reports.colours import ACCENT, BOUND, CURVE, LINE, PAPER, SOFT
from packer.reports.html import readable
from packer.reports.pictures import Paper, legend, titled
from packer.reports.report_data import ComparedFile, ReportData

DAMAGE_BPB = "damage_bpb"
SHOWN = (0.5, 1.6)  # range of the curve that is drawn, in units of the plan's size
BOUND_POINTS = 12
RECIPE_COLOURS = (
    *("#4d8acb", "#b07d21", "#23806f", "#9468b8"),
    *("#bd6a35", "#a83f7f", "#788593", "#7a8a1f"),
)
OURS = "ours"
LEFT = 62.0  # for the tick labels
Points = list[tuple[float, float]]


def curve_height(width: float) -> float:
    return 520.0 if width > 600 else 480.0


def comparable(data: ReportData) -> tuple[ComparedFile, ...]:
    """The compared files, if the plan's damage is in bits per byte too or there is no plan."""
    plan = data.plan
    same = plan is None or plan.plan.damage_kind == DAMAGE_BPB
    return data.compared if same else ()


def curve_points(data: ReportData) -> Points:
    """The part of the curve near the plan with positive damage."""
    curve, total = data.curve, data.report.total_bytes
    if curve is None:
        return []
    near = (curve.total_bytes >= SHOWN[0] * total) & (curve.total_bytes <= SHOWN[1] * total)
    if near.sum() < 2:
        near[:] = True
    kept = near & (curve.damage > 0)
    return list(zip(curve.total_bytes[kept].tolist(), curve.damage[kept].tolist(), strict=True))


def bound_points(data: ReportData) -> Points:
    """The Shannon bound over the damages of the curve."""
    curve = curve_points(data)
    if data.bounded is None or len(curve) < 2:
        return []
    damages = [damage for _, damage in curve]
    wanted = np.geomspace(max(damages), min(damages), BOUND_POINTS).tolist()
    bounds = [(data.bounded.at_damage(damage), damage) for damage in wanted]
    smallest = SHOWN[0] * data.report.total_bytes
    return [
        (bound.total_bytes, damage)
        for bound, damage in bounds
        if bound is not None and bound.total_bytes >= smallest
    ]


def draw_curve(data: ReportData, paper: Paper) -> None:
    """Draws damage against bytes: curve, bound, compared files and plan, as far as known."""
    compared, cap = comparable(data), data.report.cap_bytes
    axes = paper.figure.add_axes(paper.within(LEFT, 0, 12, 46))
    axes.set_yscale("log")
    if curve := curve_points(data):
        axes.plot(*zip(*curve, strict=True), color=CURVE, linewidth=2.2, label="best at each size")
    if len(bound := bound_points(data)) > 1:
        line: dict[str, Any] = {"color": BOUND, "linestyle": "--", "linewidth": 1.8}
        axes.plot(*zip(*bound, strict=True), label="Shannon bound", **line)
    _draw_files(axes, compared)
    _draw_plan(axes, data)
    axes.margins(0.04, 0.06)
    shown = axes.get_xlim()
    if data.plan is None:
        total = data.report.total_bytes
        axes.axvline(total, color=CURVE, linestyle="--", linewidth=1, label="size of this file")
    elif cap and shown[0] <= cap <= shown[1]:
        axes.axvline(cap, color=ACCENT, linestyle="--", linewidth=1, label="cap")
    _frame(axes, paper, "total bytes, code included", _damage_name(data))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))


def _damage_name(data: ReportData) -> str:
    if data.plan is None:
        return "measured KL, bits per byte"
    if data.plan.plan.damage_kind != DAMAGE_BPB:
        return "predicted damage, weighted squared error"
    measured = " (files compared: measured)" if comparable(data) else ""
    return f"predicted damage, bits per byte{measured}"


def _draw_files(axes: Axes, compared: Sequence[ComparedFile]) -> None:
    """Draws each recipe in one colour, its files joined in the order of size."""
    recipes = sorted({one.recipe for one in compared}, key=lambda name: (name != OURS, name))
    for index, recipe in enumerate(recipes):
        files = sorted(
            (one for one in compared if one.recipe == recipe), key=lambda one: one.total_bytes
        )
        colour = CURVE if recipe == OURS else RECIPE_COLOURS[index % len(RECIPE_COLOURS)]
        if len(files) > 1 and recipe != OURS:
            places = [(one.total_bytes, one.kl) for one in files]
            axes.plot(*zip(*places, strict=True), color=colour, linewidth=1)
        for number, one in enumerate(files):
            label = None if number else _label(recipe)
            title = (
                f"{one.words}\n{one.total_bytes:,} bytes\nmeasured KL {one.kl:.6f} bits per byte"
            )
            _dot(axes, one.total_bytes, one.kl, colour, title, recipe == OURS, label=label)


def _label(recipe: str) -> str:
    words = "ours, measured" if recipe == OURS else readable(recipe)
    return f" {words}" if words.startswith("_") else words  # matplotlib hides labels with _


def _dot(
    axes: Axes, x: float, y: float, colour: str, title: str, hollow: bool = False, **more: Any
) -> None:
    """Draws one point with its tooltip; a hollow one is a ring."""
    face, edge = (PAPER, colour) if hollow else (colour, PAPER)
    edges: dict[str, Any] = {"markeredgecolor": edge, "markeredgewidth": 2 if hollow else 1}
    look = {"markersize": 9, "zorder": 3, **edges, **more}
    dots = axes.plot(x, y, "o", markerfacecolor=face, **look)
    titled(dots[0], title)


def _draw_plan(axes: Axes, data: ReportData) -> None:
    """Draws the plan with its size and damage, and its distance to the bound."""
    plan, total, bound = data.plan, data.report.total_bytes, data.bound
    if plan is None or not plan.plan.damage > 0:
        return
    damage = plan.plan.damage
    above: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 5), "color": SOFT}
    if bound is not None:
        axes.plot([bound.total_bytes, total], [damage, damage], color=BOUND, linewidth=1)
        title = f"Shannon bound\n{bound.total_bytes:,} bytes at the plan's damage"
        _dot(axes, bound.total_bytes, damage, BOUND, title)
        middle = (bound.total_bytes + total) / 2, damage
        axes.annotate(
            f"{bound.total_bytes / total:.2f} ×", middle, ha="center", fontsize=11, **above
        )
    title = f"this plan\n{total:,} bytes\npredicted damage {damage:.4g}"
    _dot(axes, total, damage, ACCENT, title, markersize=12, zorder=4, label="this plan")
    beside: dict[str, Any] = {"textcoords": "offset points", "xytext": (10, 9)}
    size = EngFormatter(unit="B").format_data(total)
    axes.annotate(f"{size}, {damage:.3g}", (total, damage), **beside)


def draw_trials(fit: DamageFit, paper: Paper) -> None:
    """Draws predicted against measured damage of every trial, before and after the fit."""
    axes = paper.figure.add_axes(paper.within(LEFT, 0, 12, 46))
    axes.set(xscale="log", yscale="log")
    shown = [(trial, trial.total, fit.predicted(trial)) for trial in fit.trials]
    shown = [one for one in shown if min(one[1:]) > 0 and one[0].measured > 0]
    for trial, before, after in shown:
        axes.plot([before, after], [trial.measured] * 2, color=LINE, linewidth=1.5)
    for number, (trial, before, after) in enumerate(shown):
        for predicted, when, hollow, label in (
            (before, "before the fit", True, "before the fit"),
            (after, "after the fit", False, "fitted"),
        ):
            title = f"{trial.what}\npredicted {predicted:.4g} {when}\nmeasured {trial.measured:.4g}"
            colour = BOUND if hollow else CURVE
            more = {"label": None if number else label, "zorder": 3 - hollow / 2}
            _dot(axes, predicted, trial.measured, colour, title, hollow, **more)
    axes.margins(0.06)
    ends = [min(*axes.get_xlim(), *axes.get_ylim()), max(*axes.get_xlim(), *axes.get_ylim())]
    axes.plot(ends, ends, color=BOUND, linestyle="--", linewidth=1.2, label="predicted = measured")
    axes.set(xlim=ends, ylim=ends)
    _frame(axes, paper, "predicted, bits per byte", "measured KL, bits per byte")
    _log_ticks(axes.xaxis)


def _frame(axes: Axes, paper: Paper, x: str, y: str) -> None:
    """Sets grid, labels and legend. The label of y stands above the axis, unrotated."""
    labels = axes.get_legend_handles_labels()[1]
    columns, room = paper.columns(labels)
    axes.set_position(paper.within(LEFT, room + 34, 12, 46))
    legend(axes, columns, -LEFT, 34)
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", pad=10, x=-LEFT / axes.bbox.width)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _log_ticks(axes.yaxis)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=max(2, int(paper.width / 90)))


def _log_ticks(axis: Axis) -> None:
    """Tick labels such as 0.002 and 5e-05; only powers of ten on long axes."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
