"""Refine a plan: measure each tensor again at the step size where the slope of its damage/size
curve equals the price of a byte (the plan's Lagrange multiplier).

Measured steps are far apart, because measuring is slow and most steps are never chosen. Curves
through them only decide what to measure; the plan is made of measured candidates. Formats of more
bits than the finest step takes are measured of those tensors alone that this step is best for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from packer.budget.plan import Candidate
from packer.budget.step_curve import StepPoint, best_step
from packer.checkpoint.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.planning.candidates import Measurement, TensorInfo
from packer.planning.measure import (
    Progress,
    ignore_progress,
    measure_tensor,
    measured_side_by_side,
    wide_choices,
)
from packer.planning.plan import PackPlan, make_plan
from packer.progress import WeightCount
from packer.quantizers.choice import parse_choice

PASSES = 3  # docs/planner.md (Candidates, Refining)
STEPPED = ("step", "trellis")
FINEST_MEASURED = 1.001  # times it, a step is that step as a choice spells it


def refined(
    checkpoint: Checkpoint,
    plan: PackPlan,
    curvature: CurvatureSet | None,
    progress: Progress = ignore_progress,
) -> PackPlan:
    """A plan of the same candidates and of more for every tensor with curvature-aware steps, one in
    each pass; the curve for the next includes it.

    It is never worse, unless a loader is counted. Pinned tensors are not changed. Arguments as of
    `measure`. Raises CapError, PlanError.
    """
    for number in range(1, PASSES + 1):
        choices = _choices_to_measure(plan)
        if choices:
            labelled = _labelled(progress, f"pass {number} of {PASSES}")
            new = _measured(checkpoint, plan.measurement, choices, curvature, labelled)
            plan = make_plan(_with(plan.measurement, new), plan.limits, plan.pins)
    return plan


def _labelled(progress: Progress, label: str) -> Progress:
    return lambda what, done, total: progress(f"{label}, {what}", done, total)


def _measured(
    checkpoint: Checkpoint,
    measurement: Measurement,
    choices: Mapping[str, str | None],
    curvature: CurvatureSet | None,
    progress: Progress,
) -> list[Candidate]:
    infos = [info for info in measurement.tensors if info.name in choices]
    by_tensor = by_tensor_of(curvature)
    whole = curvature if curvature is not None and curvature.predicts_damage else None

    def measure(info: TensorInfo) -> list[Candidate]:
        weight, choice = checkpoint.tensors[info.name], choices[info.name]
        each = wide_choices(weight) if choice is None else [parse_choice(choice)]
        return measure_tensor(info, weight, each, by_tensor.get(info.name), whole)

    count = WeightCount(progress, {info.name: info.elements for info in infos})
    return measured_side_by_side(infos, measure, count)


def _choices_to_measure(plan: PackPlan) -> dict[str, str | None]:
    """Tensor -> the choice to measure; None for all those of more bits than steps take."""
    price = plan.plan.price
    choices: dict[str, str | None] = {}
    for name, candidates in plan.measurement.by_tensor.items():
        curves = _curves(candidates)
        if name in plan.pins or not curves:
            continue
        variant, step = _best(curves, price)
        choice = str(parse_choice(f"{variant}@{step:.4g}"))
        measured = {candidate.choice for candidate in candidates}
        steps_alone = all(one.startswith(STEPPED) for one in measured)
        if choice not in measured:
            choices[name] = choice
        elif steps_alone and step < FINEST_MEASURED * min(min(curve) for curve in curves):
            choices[name] = None
    return choices


Curve = Mapping[float, tuple[str, StepPoint]]
"""By step: the rounding variant, a choice without its step, and what was measured."""


def _best(curves: Sequence[Curve], price: float) -> tuple[str, float]:
    """(variant, step) of least cost at this price; the finest step where bytes cost nothing.

    The variant is that of the nearest step measured.
    """
    if price > 0:
        best = [best_step([point for _, point in curve.values()], price) for curve in curves]
        at = min(range(len(curves)), key=lambda one: best[one][1])
        curve, step = curves[at], best[at][0]
    else:
        curve = min(curves, key=min)
        step = min(curve)
    nearest = min(curve, key=lambda one: abs(math.log(one / step)))
    return curve[nearest][0], step


def _curves(candidates: Sequence[Candidate]) -> list[Curve]:
    """The size/damage curve of scalar codes, and that of codes on a trellis. Variants for fine and
    for coarse steps differ so little that one curve runs through both.
    """
    curves: dict[bool, dict[float, tuple[str, StepPoint]]] = {}
    for candidate in candidates:
        variant, _, step = candidate.choice.rpartition("@")
        if variant.startswith(STEPPED) and "+nearest" not in variant and candidate.damage > 0:
            point = StepPoint(float(step), candidate.size_bytes, candidate.damage)
            on_trellis = variant.startswith("trellis")
            curves.setdefault(on_trellis, {})[point.step] = variant, point
    return list(curves.values())


def _with(measurement: Measurement, new: Sequence[Candidate]) -> Measurement:
    """The measurement with new candidates, their damage on the scale of the known ones."""
    fit, known = measurement.damage_fit, measurement.by_tensor
    roles = {tensor.name: tensor.role for tensor in measurement.tensors}
    more: dict[str, list[Candidate]] = {}
    for candidate in new:
        name = candidate.tensor
        factor = 1.0 if fit is None else fit.factor(roles[name])
        damage = _scaled_damage(known[name], candidate, factor)
        more.setdefault(name, []).append(replace(candidate, damage_bpb=damage))
    candidates = [one for name in known for one in (*known[name], *more.get(name, ()))]
    return replace(measurement, candidates=tuple(candidates))


def _scaled_damage(known: Sequence[Candidate], candidate: Candidate, factor: float) -> float | None:
    """Damage in bits per byte; of a tensor without Fisher, by the known damage per weight error."""
    if candidate.damage_bpb is not None:
        return factor * candidate.damage_bpb
    like = next(one for one in known if one.weight_error > 0 and one.choice.startswith(STEPPED))
    if like.damage_bpb is None:
        return None
    return like.damage_bpb / like.weight_error * candidate.weight_error
