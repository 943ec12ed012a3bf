"""A plan in words, tables and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packer.commands.options.types import print_json, say, say_notes

if TYPE_CHECKING:
    from packer.budget.what_if import WhatIf
    from packer.planning.damage_trials import CheckedPlan
    from packer.planning.plan import PackPlan


def show_plan(
    plan: PackPlan,
    source: str,
    output: str | None,
    changes: tuple[WhatIf, ...],
    as_json: bool,
    checked: tuple[CheckedPlan, ...] = (),
) -> None:
    """Print the plan as tables or JSON."""
    from packer.reports import tables
    from packer.reports.describe import describe_quality
    from packer.reports.report import report_plan

    report = report_plan(plan, source)
    if as_json:
        value = report.to_json()
        value["what_if"] = [vars(one) for one in changes]
        value["measured_rounds"] = [
            {"predicted_damage_bpb": one.predicted, "measured_damage_bpb": one.measured}
            for one in checked
        ]
        value["calibration"] = plan.measurement.calibration
        limits = plan.limits
        value["decoder_bytes"], value["encoder_bytes"] = limits.loader_bytes, limits.encoder_bytes
        print_json({**value, "output": output})
        return
    tables.print_report(report, every_tensor=True)
    say("")
    say(plan.describe_account())
    say(plan.limits.describe_code())
    say(describe_quality(plan), lines=True)
    say_notes(report.notes)
    for one in (change for change in changes if change.cap_bytes > 0):
        say(describe_what_if(one, plan.plan.damage_kind))
    for number, tried in enumerate(checked, start=1):
        say(describe_checked(number, tried) + ("; kept" if tried.plan is plan else ""))


def describe_checked(number: int, one: CheckedPlan) -> str:
    """Predicted against measured damage of one round."""
    text = f"round {number}: measured damage {one.measured:.4g}"
    if one.predicted is None or one.ratio is None:
        return text + ", predicted in other units"
    return text + f", predicted {one.predicted:.4g}, {one.ratio:.2f} times that"


def describe_what_if(one: WhatIf, damage_kind: str) -> str:
    where = f"at a cap of {one.cap_bytes:,} ({one.offset_bytes:+,})"
    if one.damage is None or one.damage_change is None:
        return f"{where}: nothing fits"
    return f"{where}: {damage_kind} {one.damage:.4g} ({one.damage_change:+.3g})"
