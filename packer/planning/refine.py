"""A plan once more, with steps between those measured: each tensor's where its damage falls as fast
as the price of a byte asks.

Measured steps lie far apart, because measuring takes long and most of them are never chosen. The
plan's price says where on its curve each tensor belongs; there it is measured again.
"""

from __future__ import annotations

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
)
from packer.planning.plan import PackPlan, make_plan
from packer.quantizers.choice import parse_choice

PASSES = 2
STEPPED = ("step", "trellis")


def refined(
    checkpoint: Checkpoint,
    made: PackPlan,
    curvature: CurvatureSet | None,
    progress: Progress = ignore_progress,
) -> PackPlan:
    """The plan over its own candidates and two more for every tensor whose codes follow curvature;
    the second lies where the curve through the first says.

    It is never worse, where no loader is counted. Pinned tensors stay as they are. Arguments as of
    `measure`. Raises CapError, PlanError.
    """
    for number in range(1, PASSES + 1):
        wanted = _wanted(made)
        if wanted:
            told = _named(progress, f"pass {number} of {PASSES}")
            found = _measured(checkpoint, made.measurement, wanted, curvature, told)
            made = make_plan(_with(made.measurement, found), made.limits, made.pins)
    return made


def _named(progress: Progress, pass_name: str) -> Progress:
    return lambda what, done, total: progress(f"{pass_name}, {what}", done, total)


def _measured(
    checkpoint: Checkpoint,
    measurement: Measurement,
    wanted: Mapping[str, str],
    curvature: CurvatureSet | None,
    progress: Progress,
) -> list[Candidate]:
    infos = [info for info in measurement.tensors if info.name in wanted]
    by_tensor = by_tensor_of(curvature)
    whole = curvature if curvature is not None and curvature.predicts_damage else None

    def measure(info: TensorInfo) -> list[Candidate]:
        weight, choice = checkpoint.tensors[info.name], parse_choice(wanted[info.name])
        return measure_tensor(info, weight, [choice], by_tensor.get(info.name), whole)

    return measured_side_by_side(infos, measure, progress)


def _wanted(made: PackPlan) -> dict[str, str]:
    """Tensor -> the choice to measure."""
    price = made.plan.price
    found: dict[str, str] = {}
    for name, candidates in made.measurement.by_tensor.items():
        curves = _curves(candidates)
        if name in made.pins or not curves or not price > 0:
            continue
        best = {way: best_step(points, price) for way, points in curves.items()}
        way = min(best, key=lambda one: (best[one][1], one))
        choice = str(parse_choice(f"{way}@{best[way][0]:.4g}"))
        if all(candidate.choice != choice for candidate in candidates):
            found[name] = choice
    return found


def _curves(candidates: Sequence[Candidate]) -> dict[str, list[StepPoint]]:
    """Points by way: all of a choice but its step."""
    found: dict[str, list[StepPoint]] = {}
    for candidate in candidates:
        way, _, step = candidate.choice.rpartition("@")
        if way.startswith(STEPPED) and "+nearest" not in way and candidate.damage > 0:
            point = StepPoint(float(step), candidate.size_bytes, candidate.damage)
            found.setdefault(way, []).append(point)
    return found


def _with(measurement: Measurement, found: Sequence[Candidate]) -> Measurement:
    """More candidates, their damage in the measure of those that are there."""
    fit, known = measurement.damage_fit, measurement.by_tensor
    roles = {tensor.name: tensor.role for tensor in measurement.tensors}
    more: dict[str, list[Candidate]] = {}
    for candidate in found:
        name = candidate.tensor
        factor = 1.0 if fit is None else fit.factor(roles[name])
        damage = _in_the_measure_of(known[name], candidate, factor)
        more.setdefault(name, []).append(replace(candidate, damage_bpb=damage))
    candidates = [one for name in known for one in (*known[name], *more.get(name, ()))]
    return replace(measurement, candidates=tuple(candidates))


def _in_the_measure_of(
    known: Sequence[Candidate], candidate: Candidate, factor: float
) -> float | None:
    """Damage in bits per byte, of tensors without a Fisher as many per weight error as known."""
    if candidate.damage_bpb is not None:
        return factor * candidate.damage_bpb
    like = next(one for one in known if one.weight_error > 0 and one.choice.startswith(STEPPED))
    if like.damage_bpb is None:
        return None
    return like.damage_bpb / like.weight_error * candidate.weight_error
