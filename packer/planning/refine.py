"""Refine a plan: measure each tensor again at the step size where the slope of its damage/size
curve equals the price of a byte (the plan's Lagrange multiplier).

Measured steps are far apart, because measuring is slow and most steps are never chosen. Curves
through them only decide what to measure; the plan is made of measured candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from packer.budget.plan import Candidate
from packer.budget.step_curve import StepPoint, best_step
from packer.checkpoint.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.planning.candidates import Measurement, TensorInfo
from packer.planning.measure import Progress, ignore_progress, measure_tensor, measured_side_by_side
from packer.planning.plan import PackPlan, make_plan
from packer.progress import WeightCount
from packer.quantizers.choice import parse_choice

PASSES = 2  # docs/planner.md (Candidates, Refining)
STEPPED = ("step", "trellis")


def refined(
    checkpoint: Checkpoint,
    plan: PackPlan,
    curvature: CurvatureSet | None,
    progress: Progress = ignore_progress,
) -> PackPlan:
    """A plan of the same candidates and two more for every tensor with curvature-aware steps; the
    curve for the second includes the first.

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
    choices: Mapping[str, str],
    curvature: CurvatureSet | None,
    progress: Progress,
) -> list[Candidate]:
    infos = [info for info in measurement.tensors if info.name in choices]
    by_tensor = by_tensor_of(curvature)
    whole = curvature if curvature is not None and curvature.predicts_damage else None

    def measure(info: TensorInfo) -> list[Candidate]:
        weight, choice = checkpoint.tensors[info.name], parse_choice(choices[info.name])
        return measure_tensor(info, weight, [choice], by_tensor.get(info.name), whole)

    count = WeightCount(progress, {info.name: info.elements for info in infos})
    return measured_side_by_side(infos, measure, count)


def _choices_to_measure(plan: PackPlan) -> dict[str, str]:
    """Tensor -> the choice to measure."""
    price = plan.plan.price
    choices: dict[str, str] = {}
    for name, candidates in plan.measurement.by_tensor.items():
        curves = _curves(candidates)
        if name in plan.pins or not curves or not price > 0:
            continue
        best = {variant: best_step(points, price) for variant, points in curves.items()}
        variant = min(best, key=lambda one: (best[one][1], one))
        choice = str(parse_choice(f"{variant}@{best[variant][0]:.4g}"))
        if all(candidate.choice != choice for candidate in candidates):
            choices[name] = choice
    return choices


def _curves(candidates: Sequence[Candidate]) -> dict[str, list[StepPoint]]:
    """The size/damage points of each rounding variant: a choice without its step."""
    curves: dict[str, list[StepPoint]] = {}
    for candidate in candidates:
        variant, _, step = candidate.choice.rpartition("@")
        if variant.startswith(STEPPED) and "+nearest" not in variant and candidate.damage > 0:
            point = StepPoint(float(step), candidate.size_bytes, candidate.damage)
            curves.setdefault(variant, []).append(point)
    return curves


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
