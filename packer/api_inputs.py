"""What the functions of `packer.api` take: paths, or the values that a path would be read into."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from packer import measuring
from packer.account import Limits
from packer.candidates import Measurement
from packer.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.curvature.curvature_set import AnyCurvature, CurvatureSet
from packer.curved_choices import SPARSE
from packer.errors import CapError, PlanError
from packer.files import is_json
from packer.measuring import Progress
from packer.planning import PackPlan, follow_policy, read_measurement, read_plan
from packer.quantizers.curvature import Curvature

PathLike = str | os.PathLike[str]
CurvatureLike = PathLike | CurvatureSet | Mapping[str, Curvature]
CheckpointLike = PathLike | Mapping[str, torch.Tensor] | Checkpoint


def load(checkpoint: CheckpointLike) -> Checkpoint:
    """A Checkpoint of whatever describes one. Raises CheckpointError."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        return from_state_dict(checkpoint)
    return read_checkpoint(checkpoint)


def checkpoint_of(source: object, what: str) -> Checkpoint:
    """Raises PlanError: measurements, which were made with some curvature and coder already."""
    if isinstance(source, Measurement | PackPlan) or (
        isinstance(source, str | os.PathLike) and is_json(source)
    ):
        raise PlanError(
            "measurements carry the damage and sizes they were measured with; give the checkpoint "
            f"to measure it with another {what}"
        )
    return load(source)  # type: ignore[arg-type]


def load_plan(plan: PathLike | PackPlan) -> PackPlan:
    """A PackPlan of whatever describes one. Raises PlanError."""
    return plan if isinstance(plan, PackPlan) else read_plan(plan)


def measurement_of(
    source: CheckpointLike | Measurement | PackPlan,
    pins: Mapping[str, str] | None,
    metadata: Mapping[str, str] | None,
    curvature: AnyCurvature | None,
    coder: str | None,
    trellis: bool,
    progress: Progress,
) -> tuple[Measurement, Mapping[str, str]]:
    """(measurements, pins of an earlier plan). A checkpoint is measured for a plan to refine."""
    if isinstance(source, Measurement):
        return source, {}
    if isinstance(source, PackPlan):
        return source.measurement, source.pins
    if isinstance(source, str | os.PathLike) and is_json(source):
        return read_measurement(source)
    measured = measuring.measure(
        load(source),
        pins=pins,
        metadata=metadata,
        curvature=curvature,
        coder=coder,
        trellis=trellis,
        grid=SPARSE,
        progress=progress,
    )
    return measured, {}


def under_policy(
    policy: PackPlan,
    source: CheckpointLike | Measurement | PackPlan,
    limits: Limits,
    metadata: Mapping[str, str] | None,
    curvature: AnyCurvature | None,
    progress: Progress,
) -> PackPlan:
    """Measures the policy's own choices first, and all others only when those do not fit."""
    if not isinstance(source, str | os.PathLike | Mapping | Checkpoint):
        measured, _ = measurement_of(source, None, None, None, None, False, progress)
        return follow_policy(policy, measured, limits)
    checkpoint = load(source)
    quick = measuring.measure_choices(checkpoint, policy.choices, metadata, progress, curvature)
    try:
        return follow_policy(policy, quick, limits)
    except CapError:
        whole = measuring.measure(
            checkpoint,
            pins=policy.choices,
            metadata=metadata,
            curvature=curvature,
            progress=progress,
        )
        return follow_policy(policy, whole, limits)
