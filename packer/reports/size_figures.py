"""The size/damage curve with the plan, the bound and compared files on it; predicted against
measured damage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from packer.damage_fit import DamageFit
from packer.reports.axes import Scale, around, frame, spell_bytes
from packer.reports.drawing import (
    Dot,
    Drawing,
    Line,
    Mark,
    Words,
    key_dot,
    key_line,
    legend,
    width_of,
)
from packer.reports.evidence import ComparedFile, Evidence

DAMAGE_BPB = "damage_bpb"
SHOWN = (0.5, 1.6)  # of the plan's size: what the curve is drawn for
BOUND_POINTS = 12
RECIPE_COLOURS = ("#b07d21", "#23806f", "#9468b8", "#bd6a35", "#a83f7f", "#788593", "#4d8acb")
OURS = "ours"
Points = list[tuple[float, float]]


def draw_curve(evidence: Evidence, width: float) -> Drawing:
    """Damage against bytes: whatever of curve, plan, bound and compared files there is."""
    curve, bound = curve_points(evidence), bound_points(evidence)
    compared = comparable(evidence)
    keys = _keys(evidence, compared, bool(bound))
    marks, top = legend(keys, width)
    shown = [*curve, *bound, *((one.total_bytes, one.kl) for one in compared)]
    if evidence.plan is not None and evidence.plan.plan.damage > 0:
        shown.append((evidence.report.total_bytes, evidence.plan.plan.damage))
    height = 400.0 if width > 600 else 330.0
    sizes = [size for size, _ in shown] + [evidence.report.total_bytes]
    room = 0.04 * (max(sizes) - min(sizes)) or 1.0
    x = Scale(min(sizes) - room, max(sizes) + room, 62, width - 12)
    low, high = around([damage for _, damage in shown] or [1.0])
    y = Scale(low, high, top + height, top + 34, log=True)
    marks += frame(x, y, "total bytes, code included", _damage_name(evidence))
    marks += _lines(evidence, x, y, curve, bound)
    marks += _files(compared, x, y)
    marks += _plan(evidence, x, y)
    return Drawing(width, top + height + 46, tuple(marks))


def has_curve(evidence: Evidence) -> bool:
    """Whether there is anything to draw."""
    return bool(curve_points(evidence)) or bool(comparable(evidence))


def comparable(evidence: Evidence) -> tuple[ComparedFile, ...]:
    """Compared files, where their KL is of the same kind as the plan's damage or there is none."""
    plan = evidence.plan
    same = plan is None or plan.plan.damage_kind == DAMAGE_BPB
    return evidence.compared if same else ()


def curve_points(evidence: Evidence) -> Points:
    """The curve around the plan, where damage is more than none."""
    curve, total = evidence.curve, evidence.report.total_bytes
    if curve is None:
        return []
    near = (curve.total_bytes >= SHOWN[0] * total) & (curve.total_bytes <= SHOWN[1] * total)
    if near.sum() < 2:
        near[:] = True
    kept = near & (curve.damage > 0)
    return list(zip(curve.total_bytes[kept].tolist(), curve.damage[kept].tolist(), strict=True))


def bound_points(evidence: Evidence) -> Points:
    """The Shannon bound over the damages of the curve."""
    curve = curve_points(evidence)
    if evidence.bounded is None or len(curve) < 2:
        return []
    damages = [damage for _, damage in curve]
    wanted = np.geomspace(max(damages), min(damages), BOUND_POINTS).tolist()
    found = [(evidence.bounded.at_damage(damage), damage) for damage in wanted]
    smallest = SHOWN[0] * evidence.report.total_bytes
    return [
        (bound.total_bytes, damage)
        for bound, damage in found
        if bound is not None and bound.total_bytes >= smallest
    ]


def _damage_name(evidence: Evidence) -> str:
    if evidence.plan is None:
        return "measured KL, bits per byte"
    if evidence.plan.plan.damage_kind != DAMAGE_BPB:
        return "predicted damage, weighted squared error"
    measured = " (files compared: measured)" if comparable(evidence) else ""
    return f"predicted damage, bits per byte{measured}"


def _colours(compared: Sequence[ComparedFile]) -> dict[str, str]:
    recipes = sorted({one.recipe for one in compared} - {OURS})
    named = {name: RECIPE_COLOURS[at % len(RECIPE_COLOURS)] for at, name in enumerate(recipes)}
    return {OURS: "curve", **named}


def _keys(
    evidence: Evidence, compared: Sequence[ComparedFile], bounded: bool
) -> list[tuple[str, Mark]]:
    keys: list[tuple[str, Mark]] = []
    if evidence.curve is not None:
        keys.append(("best at each size", key_line("curve")))
    if evidence.plan is not None:
        keys.append(("this plan", key_dot("accent")))
    if bounded:
        keys.append(("Shannon bound", key_line("bound", dashed=True)))
    if evidence.report.cap_bytes:
        keys.append(("cap", key_line("accent", dashed=True)))
    if evidence.plan is None:
        keys.append(("size of this file", key_line("curve", dashed=True)))
    colours = _colours(compared)
    for recipe in sorted({one.recipe for one in compared}, key=lambda name: (name != OURS, name)):
        words = "ours, measured" if recipe == OURS else recipe
        keys.append((words, key_dot(colours[recipe], hollow=recipe == OURS)))
    return keys


def _lines(evidence: Evidence, x: Scale, y: Scale, curve: Points, bound: Points) -> list[Mark]:
    marks: list[Mark] = []
    cap, total = evidence.report.cap_bytes, evidence.report.total_bytes
    if evidence.plan is None:
        at = x.at(total)
        marks.append(Line(((at, y.start), (at, y.end)), "curve", 1, dashed=True))
    if cap and x.within(cap):
        marks.append(Line(((x.at(cap), y.start), (x.at(cap), y.end)), "accent", 1, dashed=True))
    if len(curve) > 1:
        places = thinned([(x.at(size), y.at(damage)) for size, damage in curve])
        marks.append(Line(tuple(places), "curve", 2.2))
    if len(bound) > 1:
        places = [(x.at(size), y.at(damage)) for size, damage in bound]
        marks.append(Line(tuple(places), "bound", 1.8, dashed=True))
    return marks


def thinned(places: Points) -> Points:
    """Without points less than a pixel from the one before; first and last stay."""
    kept = places[:1]
    for place in places[1:-1]:
        if math.dist(place, kept[-1]) >= 1.0:
            kept.append(place)
    return kept + places[-1:]


def _files(compared: Sequence[ComparedFile], x: Scale, y: Scale) -> list[Mark]:
    marks: list[Mark] = []
    colours = _colours(compared)
    for recipe in sorted({one.recipe for one in compared}):
        files = sorted(
            (one for one in compared if one.recipe == recipe), key=lambda one: one.total_bytes
        )
        places = tuple((x.at(one.total_bytes), y.at(one.kl)) for one in files)
        if len(places) > 1 and recipe != OURS:
            marks.append(Line(places, colours[recipe], 1))
        for one, (px, py) in zip(files, places, strict=True):
            title = (
                f"{one.words}\n{one.total_bytes:,} bytes\nmeasured KL {one.kl:.6f} bits per byte"
            )
            marks.append(Dot(px, py, 4.5, colours[recipe], title, hollow=recipe == OURS))
    return marks


def _plan(evidence: Evidence, x: Scale, y: Scale) -> list[Mark]:
    """The plan, with its damage beside it, and how far to its left the bound lies."""
    plan, total = evidence.plan, evidence.report.total_bytes
    if plan is None or not plan.plan.damage > 0:
        return []
    damage = plan.plan.damage
    title = f"this plan\n{total:,} bytes\npredicted damage {damage:.4g}"
    px, py = x.at(total), y.at(damage)
    marks: list[Mark] = []
    bound = evidence.bound
    if bound is not None and x.within(bound.total_bytes):
        bx = x.at(bound.total_bytes)
        words = f"{bound.total_bytes / total:.2f} ×"
        marks.append(Line(((bx, py), (px, py)), "bound", 1))
        told = f"Shannon bound\n{bound.total_bytes:,} bytes at the plan's damage"
        marks.append(Dot(bx, py, 4, "bound", told))
        marks.append(Words((bx + px) / 2, py - 5, words, 11, "soft", "middle"))
    marks.append(Dot(px, py, 6, "accent", title))
    label = f"{spell_bytes(total)}, {damage:.3g}"
    right = px + 10 + width_of(label, 12) <= x.end
    marks.append(
        Words(px + (10 if right else -10), py - 9, label, 12, "ink", "start" if right else "end")
    )
    return marks


def draw_trials(fit: DamageFit, width: float) -> Drawing:
    """Predicted against measured damage of every trial, before and after the fit."""
    marks, top = legend(
        [
            ("fitted", key_dot("curve")),
            ("before the fit", key_dot("bound", hollow=True)),
            ("predicted = measured", key_line("bound", dashed=True)),
        ],
        width,
    )
    height = 400.0 if width > 600 else 330.0
    after = [(fit.predicted(trial), trial.measured) for trial in fit.trials]
    before = [(trial.total, trial.measured) for trial in fit.trials]
    low, high = around(
        [value for pair in (*after, *before) for value in pair if value > 0] or [1.0]
    )
    x = Scale(low, high, 62, width - 12, log=True)
    y = Scale(low, high, top + height, top + 34, log=True)
    marks += frame(x, y, "predicted, bits per byte", "measured KL, bits per byte")
    marks.append(Line(((x.start, y.start), (x.end, y.end)), "bound", 1.2, dashed=True))
    for (raw, _), (fitted, measured) in zip(before, after, strict=True):
        if raw > 0 and fitted > 0:
            places = ((x.at(raw), y.at(measured)), (x.at(fitted), y.at(measured)))
            marks.append(Line(places, "line", 1.5))
    for points, hollow in ((before, True), (after, False)):
        for trial, (predicted, measured) in zip(fit.trials, points, strict=True):
            if predicted > 0:
                when = "before the fit" if hollow else "after the fit"
                title = f"{trial.what}\npredicted {predicted:.4g} {when}\nmeasured {measured:.4g}"
                place = x.at(predicted), y.at(measured)
                marks.append(Dot(*place, 5, "bound" if hollow else "curve", title, hollow=hollow))
    return Drawing(width, top + height + 46, tuple(marks))
