"""Measurements that are planned from in place of the checkpoint they were made of."""

from __future__ import annotations

import os
from collections.abc import Mapping

from packer.errors import PlanError
from packer.files import is_json
from packer.planning.candidates import Measurement
from packer.planning.options import MeasureOptions
from packer.planning.plan import PackPlan, read_measurement


def measurement_in(source: object) -> tuple[Measurement, Mapping[str, str]] | None:
    """(measurements, pins of the plan they are in); None for a checkpoint. Raises PlanError."""
    if isinstance(source, Measurement):
        return source, {}
    if isinstance(source, PackPlan):
        return source.measurement, source.pins
    if isinstance(source, str | os.PathLike) and is_json(source):
        return read_measurement(source)
    return None


def check_measured(options: MeasureOptions, curvature_given: bool) -> None:
    """Raises PlanError: measurements cannot be measured otherwise than they are."""
    otherwise = {
        "curvature": curvature_given,
        "coder": options.coder is not None,
        "trellis": options.trellis,
        "metadata": bool(options.metadata),
    }
    for what in (name for name, given in otherwise.items() if given):
        raise PlanError(
            "measurements carry the damage and sizes they were measured with; give the checkpoint "
            f"to measure it with another {what}"
        )
