"""The one path from weights to a plan under a cap: measure, fit, plan, refine.

1. Measure: every tensor is quantized and entropy coded under every choice that could be best, which
   gives its real bytes and its predicted damage (`packer.planning.measure`). With curvature, damage
   is the KL divergence to the unquantized model in bits per byte, to second order; without, a
   weight error.
2. Fit: given the model and a held-out text, the divergence of a few whole plans is measured, and
   predictions are multiplied by one factor per role (`packer.planning.damage_trials`).
3. Plan: the combination of least damage whose bytes fit the cap, code included, found exactly
   (`packer.planning.plan`, `packer.budget.plan`).
4. Refine: each tensor is measured again at the step size where the slope of its damage/size curve
   equals the plan's price of a byte (its Lagrange multiplier), and the plan is made again
   (`packer.planning.refine`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet
from packer.errors import CapError
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.damage_trials import NO_CALIBRATION, Calibration, fit_to_model
from packer.planning.measure import (
    Progress,
    ignore_progress,
    measure,
    measure_choices,
    metadata_of,
)
from packer.planning.options import MeasureOptions
from packer.planning.plan import PackPlan, follow_policy, make_plan
from packer.planning.reachable import check_reachable
from packer.planning.refine import refined
from packer.planning.step_grid import SPARSE

Shown = Callable[[str], contextlib.AbstractContextManager[Progress]]
"""Stage, such as "measuring" -> a context in which its progress is shown."""


def always(progress: Progress) -> Shown:
    """Reports all stages to one function."""
    return lambda _: contextlib.nullcontext(progress)


not_shown = always(ignore_progress)


def plan_checkpoint(
    checkpoint: Checkpoint,
    limits: Limits,
    options: MeasureOptions,
    calibration: Calibration = NO_CALIBRATION,
    shown: Shown = not_shown,
) -> PackPlan:
    """The plan of least damage under the cap. Raises CapError, PlanError, SelectorError."""
    check_reachable(checkpoint, limits, options, calibration.curvature is not None)
    measurement = measure_to_plan(checkpoint, options, calibration, shown)
    plan = make_plan(measurement, limits, options.pins)
    return refine_plan(plan, checkpoint, calibration, shown)


def measure_to_plan(
    checkpoint: Checkpoint,
    options: MeasureOptions,
    calibration: Calibration = NO_CALIBRATION,
    shown: Shown = not_shown,
) -> Measurement:
    """Candidates at few step sizes, because the plan will be refined; damage fitted."""
    with shown("measuring") as progress:
        measurement = measure(
            checkpoint, options, calibration.curvature, grid=SPARSE, progress=progress
        )
    return fit_measurement(measurement, calibration, shown)


def fit_measurement(
    measurement: Measurement, calibration: Calibration, shown: Shown = not_shown
) -> Measurement:
    """Predicted damage fitted to measurements on the model, if the calibration has an evaluator."""
    if calibration.evaluator is None or measurement.curvature is None:
        return measurement
    with shown("fitting") as progress:
        return fit_to_model(measurement, calibration.evaluator, progress)


def refine_plan(
    plan: PackPlan,
    checkpoint: Checkpoint,
    calibration: Calibration = NO_CALIBRATION,
    shown: Shown = not_shown,
) -> PackPlan:
    """The plan with step sizes between those measured; unchanged without curvature."""
    if calibration.curvature is None:
        return plan
    with shown("refining") as progress:
        return refined(checkpoint, plan, calibration.curvature, progress)


def plan_under_policy(
    policy: PackPlan,
    checkpoint: Checkpoint,
    limits: Limits,
    options: MeasureOptions,
    calibration: Calibration = NO_CALIBRATION,
    shown: Shown = not_shown,
) -> PackPlan:
    """A plan by another run's choices. Other choices are measured only if these do not fit; nothing
    is where the policy was measured on the same contents.

    Raises PlanError: tensors of another structure. CapError: nothing fits.
    """
    curvature = calibration.curvature
    if _measured_alike(policy.measurement, checkpoint, options, curvature):
        return follow_policy(policy, policy.measurement, limits)
    with shown("measuring") as progress:
        own = measure_choices(checkpoint, policy.choices, options.metadata, curvature, progress)
        try:
            return follow_policy(policy, own, limits)
        except CapError:
            pinned = replace(options, pins=policy.choices)
            every = measure(checkpoint, pinned, curvature, progress=progress)
            return follow_policy(policy, every, limits)


def _measured_alike(
    measurement: Measurement,
    checkpoint: Checkpoint,
    options: MeasureOptions,
    curvature: CurvatureSet | None,
) -> bool:
    """Whether measuring would give the same: equal contents, metadata and curvature."""
    return (
        measurement.curvature == (None if curvature is None else curvature.sha256)
        and measurement.metadata == metadata_of(checkpoint, options.metadata)
        and measurement.contents == contents_fingerprint(checkpoint)
    )
