"""Accounts and plans in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packer.planning.account import describe_rest
from packer.planning.plan import saved_by

if TYPE_CHECKING:
    from packer.planning.plan import PackPlan
    from packer.reports.evidence import Evidence
    from packer.reports.report import Report


def describe_account(found: Report, plan: PackPlan | None) -> str:
    """The account to the byte, as far as the source knows its parts."""
    if found.account is not None:
        return f"{found.source}: {found.account}"
    if plan is not None:
        return f"{plan.describe_account()}\n{plan.limits.describe_code()}"
    rest = describe_rest(found.cap_bytes, found.unused_bytes)
    what = "artifact" if found.kind == "foreign" else "weights as stored"
    return f"code {found.code_bytes:,} + {what} {found.artifact_bytes:,} = " + (
        f"{found.total_bytes:,}{rest}"
    )


def describe_quality(made: PackPlan) -> str:
    """Damage, how far from the best plan this can be at most, and where room is short, what 1,000
    more bytes would save.
    """
    plan = made.plan
    saved = saved_by(made, 1000)
    price = "" if saved is None else f"; 1,000 more bytes would save {saved:.3g}"
    text = f"predicted damage ({plan.damage_kind}) {plan.damage:.4g}{price}; {describe_proof(made)}"
    text += f"\ndamage is the {made.measurement.damage_source}"
    if made.measurement.damage_fit is not None:
        text += f"\nfitted to {made.measurement.damage_fit.describe()}"
    return text


def describe_proof(made: PackPlan) -> str:
    """What is proven of the plan."""
    if made.plan.gap == 0:
        return "proven optimal"
    return f"the best plan is at most {100 * made.plan.gap:.2g} % lower"


def describe_bound(evidence: Evidence) -> str:
    """How far the plan is from what could do at most; empty where that is not known."""
    bound, total = evidence.bound, evidence.report.total_bytes
    if bound is None:
        return ""
    return (
        f"Shannon bound at this damage: {bound.total_bytes:,} bytes, "
        f"{bound.total_bytes / total:.3f} times the plan's"
    )
