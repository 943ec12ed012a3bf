"""A plan for weights that were trained for certain formats: those, where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from packer import api
from packer.candidates import Measurement
from packer.errors import CapError
from packer.planning import PackPlan


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
    try:
        return api.plan(measured, cap_bytes, code=code, pins=pins, out=out), ""
    except CapError as error:
        if not pins:
            raise
        refused = error
    free = api.plan(measured, cap_bytes, code=code, out=out)
    return free, f"the formats trained for do not fit ({refused}); planned without them"
