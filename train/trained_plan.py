"""A plan for weights that were trained for certain formats: those, where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from packer.quantizers.formats import TensorFormat, Uniform
from packer.quantizers.quantize import quantize
from packer.train.qat import selected
from torch import Tensor

from packer import api
from packer.curvature.curvature_set import CurvatureSet
from packer.errors import CapError
from packer.planning.candidates import Measurement
from packer.planning.plan import PackPlan


def with_pruned_codes(
    pins: Mapping[str, str],
    weights: Mapping[str, Tensor],
    curvature: CurvatureSet | None,
    fraction: float,
) -> dict[str, str]:
    """The pins, with the smallest codes of all integer formats below 8 bits set to 0 (#569).

    All codes are ordered by magnitude as one list; those up to the one at `fraction` of it go.
    """
    choices = {name: one for name, one in selected(pins, weights).items() if _is_small(one.format)}
    counts = torch.zeros(128, dtype=torch.int64)
    for name, choice in choices.items() if fraction else ():
        known = None if curvature is None else curvature.by_tensor.get(name)
        codes = quantize(weights[name], choice, known).codes
        counts += torch.bincount(codes.abs().flatten().long(), minlength=len(counts))
    wanted = int(fraction * int(counts.sum()))
    largest = int((counts.cumsum(0) < max(wanted, 1)).sum()) if choices and fraction else 0
    if not largest:
        return dict(pins)
    return dict(pins) | {name: str(replace(one, zero=largest)) for name, one in choices.items()}


def _is_small(format: TensorFormat) -> bool:
    return isinstance(format, Uniform) and format.bits < 8


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
