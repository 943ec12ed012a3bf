"""The data of a report: its table, the size curve, compared files, the bound, code histograms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from packer.budget.frontier import sweep
from packer.errors import PackerError
from packer.files import read_json
from packer.planning.plan import PackPlan, restrict
from packer.reports.report import Report

if TYPE_CHECKING:
    from packer.planning.shannon_bound import BoundedPlan, ShannonBound

CURVE_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the plan's total, in tables


@dataclass(frozen=True)
class ComparedFile:
    """One row of `packer compare --json`. kl: measured, in bits per byte."""

    recipe: str
    parameter: float | None
    cap_bytes: int | None
    total_bytes: int
    kl: float

    @property
    def words(self) -> str:
        """Recipe and size parameter, as legends and titles name it."""
        return self.recipe if self.parameter is None else f"{self.recipe} at {self.parameter:g}"


@dataclass(frozen=True, eq=False)
class SizeCurve:
    """The least predicted damage at every size. total_bytes: code and header included."""

    total_bytes: npt.NDArray[np.int64]
    damage: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurvePoint:
    """A line of the curve as a table. bound_bytes: the Shannon bound of this damage, if known."""

    total_bytes: int
    damage: float
    bound_bytes: int | None


@dataclass(frozen=True)
class CodeHistogram:
    """How often each code of a tensor occurs.

    first: the code of counts[0]. entropy_bits: order 0, per code; bits_per_weight: of the tensor in
    the file.
    """

    tensor: str
    format: str
    first: int
    counts: tuple[int, ...]
    entropy_bits: float
    bits_per_weight: float


@dataclass(frozen=True, eq=False)
class ReportData:
    """A report with the data of its pictures and pages; unknown parts are None or empty."""

    report: Report
    plan: PackPlan | None = None
    curve: SizeCurve | None = None
    bounded: BoundedPlan | None = None
    bound: ShannonBound | None = None
    compared: tuple[ComparedFile, ...] = ()
    histograms: tuple[CodeHistogram, ...] = ()

    @property
    def points(self) -> tuple[CurvePoint, ...]:
        """The curve at some shares of the plan's size; empty where there is no curve."""
        if self.curve is None:
            return ()
        sizes = self.curve.total_bytes
        wanted = [round(share * self.report.total_bytes) for share in CURVE_SHARES]
        reached = [total for total in wanted if sizes[0] <= total <= sizes[-1]]
        return tuple(self._point(total) for total in reached)

    def _point(self, total_bytes: int) -> CurvePoint:
        assert self.curve is not None
        sizes, damages = self.curve.total_bytes, self.curve.damage
        damage = float(np.interp(total_bytes, sizes, damages))
        bound = None if self.bounded is None else self.bounded.at_damage(damage)
        return CurvePoint(total_bytes, damage, None if bound is None else bound.total_bytes)

    def to_json(self) -> dict[str, Any]:
        """What `--json` adds to the report."""
        bound = self.bound
        return {
            "curve": [vars(point) for point in self.points],
            "shannon_bound_bytes": None if bound is None else bound.total_bytes,
        }


def curve_of(plan: PackPlan) -> SizeCurve:
    """The whole sweep over a plan's measurements, its pins kept."""
    fixed = plan.plan.code_bytes + plan.plan.header_bytes
    curve = sweep(restrict(plan.measurement, plan.pins), fixed_bytes=fixed)
    return SizeCurve(curve.total_bytes, np.maximum(curve.damage, 0.0))


def report_data(
    report: Report,
    plan: PackPlan | None = None,
    *,
    bounded: BoundedPlan | None = None,
    compared: Sequence[ComparedFile] = (),
    histograms: Sequence[CodeHistogram] = (),
) -> ReportData:
    """The report with its curve and its bound computed."""
    bound = None
    if plan is not None and bounded is not None:
        bound = bounded.at_damage(plan.plan.damage)
    return ReportData(
        report,
        plan,
        None if plan is None else curve_of(plan),
        bounded,
        bound,
        tuple(compared),
        tuple(histograms),
    )


def read_compared(path: str | os.PathLike[str]) -> tuple[ComparedFile, ...]:
    """The rows printed by `packer compare --json`; those without a KL are left out.

    Raises PackerError: the file holds something else.
    """
    try:
        files = [_compared(row) for row in read_json(path)["rows"]]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise PackerError(
            f"{path} is not what `packer compare --json` prints: {error!r}. Compare again and keep "
            "its output: packer compare ... --json > rows.json"
        ) from None
    return tuple(file for file in files if file is not None)


def _compared(row: Mapping[str, Any]) -> ComparedFile | None:
    kl, parameter, cap = row["kl_bits_per_byte"], row["parameter"], row["cap_bytes"]
    total = row["total_bytes"]
    if type(total) is not int or total <= 0:
        raise ValueError(f"total_bytes is {total!r}")
    if kl is None or not 0 < float(kl) < float("inf"):
        return None
    return ComparedFile(
        str(row["recipe"]),
        None if parameter is None else float(parameter),
        None if cap is None else int(cap),
        total,
        float(kl),
    )
