"""A plan for weights that were trained for certain formats: those, where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from packer import api
from packer.errors import CapError
from packer.planning.candidates import Measurement
from packer.planning.plan import PackPlan


def plan_as_trained(
    measured: Measurement,
    cap_bytes: int,
    pins: Mapping[str, str],
    *,
    code: Sequence[str] = (),
    out: Path | None = None,
) -> tuple[PackPlan, str]:
    """(the plan that keeps `pins` if the cap allows it, else a free one; what had to give way).

    Raises CapError: not even a free plan fits.
    """
    limits = api.PlanLimits(cap_bytes, code)
    try:
        return api.plan(measured, limits, api.MeasureOptions(pins), out=out), ""
    except CapError as error:
        if not pins:
            raise
        refused = error
    free = api.plan(measured, limits, out=out)
    return free, f"the formats trained for do not fit ({refused}); planned without them"
