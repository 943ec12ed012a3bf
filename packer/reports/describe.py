"""Describes accounts and plans in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packer.planning.account import describe_rest
from packer.planning.plan import saved_by

if TYPE_CHECKING:
    from packer.planning.plan import PackPlan
    from packer.reports.report import Report
    from packer.reports.report_data import ReportData


NOT_CALIBRATED = (
    "not calibrated: a model to calibrate (--config FILE or --model FILE.py:NAME, where none is "
    "found beside the weights) gives a far better plan, with --calibration TEXT or without"
)


def describe_account(report: Report, plan: PackPlan | None) -> str:
    """The account to the byte, in the parts that the source distinguishes."""
    if report.account is not None:
        return f"{report.source}: {report.account}"
    if plan is not None:
        return f"{plan.describe_account()}\n{plan.limits.describe_code()}"
    rest = describe_rest(report.cap_bytes, report.unused_bytes)
    what = "artifact" if report.kind == "foreign" else "weights as stored"
    return f"code {report.code_bytes:,} + {what} {report.artifact_bytes:,} = " + (
        f"{report.total_bytes:,}{rest}"
    )


def describe_quality(pack_plan: PackPlan) -> str:
    """The damage, the proven distance from the best plan and, if the cap binds, the damage that
    1,000 more bytes would save.
    """
    plan, measurement = pack_plan.plan, pack_plan.measurement
    saved = saved_by(pack_plan, 1000)
    price = "" if saved is None else f"; 1,000 more bytes would save {saved:.3g}"
    text = f"predicted damage ({plan.damage_kind}) {plan.damage:.4g}{price}"
    text += f"; {describe_proof(pack_plan)}\ndamage is the {measurement.damage_source}"
    if measurement.calibration == "none":
        text += f"\n{NOT_CALIBRATED}"
    if measurement.damage_fit is not None:
        text += f"\nfitted to {measurement.damage_fit.describe()}"
    return text


def describe_proof(pack_plan: PackPlan) -> str:
    """The proven optimality gap of the plan."""
    if pack_plan.plan.gap == 0:
        return "proven optimal"
    return f"the best plan is at most {100 * pack_plan.plan.gap:.2g} % lower"


def describe_bound(data: ReportData) -> str:
    """The plan's size against the Shannon bound; empty if the bound is unknown."""
    bound, total = data.bound, data.report.total_bytes
    if bound is None:
        return ""
    return (
        f"Shannon bound at this damage: {bound.total_bytes:,} bytes, "
        f"{bound.total_bytes / total:.3f} times the plan's"
    )
