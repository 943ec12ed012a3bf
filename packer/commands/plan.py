"""`packer plan`: a format for every tensor, under a cap."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import evaluator_of
from packer.commands.carrying import INCLUDE, carried
from packer.commands.load_calibration import kept_curvature
from packer.commands.models import model_of, refusals, running_foreign
from packer.commands.options.curvature import CURVATURE_KEPT, CurvatureOptions, beside
from packer.commands.options.groups import (
    CALIBRATION,
    MAIN,
    OUTPUT,
    OptionGroup,
    SectionedCommand,
    option,
    with_options,
)
from packer.commands.options.opening import Opening
from packer.commands.options.types import (
    CODE,
    CODER,
    EXISTING,
    JSON,
    MARGIN,
    PINS,
    TRELLIS,
    WRITABLE,
    cap_option,
    measure_options,
    plan_limits,
    print_json,
    refuse_overwriting,
    say,
    say_notes,
)
from packer.commands.plan_source import Measured, measured_from
from packer.files import is_json, write_json
from packer.planning.options import MeasureOptions, PlanLimits

if TYPE_CHECKING:
    from packer.budget.what_if import WhatIf
    from packer.commands.options.model import ModelOptions
    from packer.commands.options.text import TextOptions
    from packer.planning.account import Limits
    from packer.planning.damage_trials import CheckedPlan
    from packer.planning.plan import PackPlan

LOADER = click.option("--loader", is_flag=True, help="Count the bytes of the loader too.")
BUNDLE = click.option(
    "--bundle", is_flag=True, help="Count what `packer bundle` will write: encoder and decoder."
)
WHAT_IF = option(
    "--what-if",
    section=OUTPUT,
    is_flag=True,
    help="Also print the damage at the cap ±50 KB and ±200 KB.",
)


@click.command(cls=SectionedCommand, short_help="Choose a format for every tensor, under a cap.")
@click.argument("source", type=EXISTING)
@OptionGroup(
    "limits",
    plan_limits,
    cap_option(required=True),
    CODE,
    LOADER,
    BUNDLE,
    MARGIN,
)
@OptionGroup("options", measure_options, PINS, CODER, TRELLIS)
@option(
    "--measure-on",
    section=CALIBRATION,
    multiple=True,
    metavar="PATH",
    help="Measure the plan's true damage on this text or these shards, fit and plan again, at most "
    "three times, and keep the best; repeat for more.",
)
@CURVATURE_KEPT
@option(
    "-o", "--output", section=MAIN, type=WRITABLE, help="Write the plan to FILE, for `packer pack`."
)
@with_options(INCLUDE, WHAT_IF, JSON)
def plan(
    source: str,
    limits: PlanLimits,
    options: MeasureOptions,
    output: str | None,
    measure_on: tuple[str, ...],
    curvature: CurvatureOptions,
    include: tuple[str, ...],
    what_if: bool,
    as_json: bool,
) -> None:
    """Choose a format for every tensor, so that file and code fit the cap with the least damage.

    \b
    packer plan model.pt --cap 16MB --calibration train.txt \\
        --tokenizer bpe.model -o plan.json

    SOURCE is a checkpoint (or another author's artifact), which is measured first, or a file of
    measurements (candidates.json, or an earlier plan.json), which takes a second to plan again.
    Calibration predicts damage in bits per byte and lets GPTQ round. Without --calibration or
    --curvature, the model writes the text itself, if its configuration is in or beside the
    checkpoint or --model names its class; --no-calibration plans from the weights alone.
    """
    from packer.planning.code_size import weigh_limits

    curvature.check()
    for written in curvature.writes(output):
        refuse_overwriting([source, *limits.code, *curvature.inputs, *measure_on], written)
    weighed = weigh_limits(limits)
    built = curvature.built
    if not (measure_on and is_json(source)):
        options = replace(options, metadata=carried(built.config, include, source))
    measured = measured_from(source, weighed, curvature, options, measure_on)
    pack_plan = measured.plan(weighed)
    checked: tuple[CheckedPlan, ...] = ()
    if measure_on:
        measured = replace(measured, measurement=pack_plan.measurement)
        checked = _checked(measured, weighed, replace(curvature.text, data=measure_on), built)
        pack_plan = min(checked, key=lambda one: one.measured).plan
    if output:
        write_json(output, pack_plan.to_json())
    kept = _kept(source, measured, curvature, output)
    changes = _what_if(pack_plan) if what_if else ()
    _show(pack_plan, source, output, changes, as_json, checked)
    if output and not as_json:
        say(f"next: {_next_command(pack_plan, output, kept, built.opening)}")


def _kept(
    source: str, measured: Measured, curvature: CurvatureOptions, output: str | None
) -> str | None:
    """The curvature file that the plan was made with, written if it was made here."""
    if measured.calibration is not None:
        return kept_curvature(measured.calibration, curvature, output)
    if curvature.file is None and Path(beside(source)).is_file():
        return beside(source)
    return curvature.file


def _next_command(pack_plan: PackPlan, plan: str, curvature: str | None, opening: Opening) -> str:
    """The command that packs this plan, with the options that read the same weights.

    Files that are not there are in capitals, as in help.
    """
    from packer.planning.plan import rounded_with_curvature

    source = pack_plan.measurement.source
    checkpoint = source if Path(source).exists() else "CHECKPOINT"
    words = ["packer", "pack", checkpoint, "--plan", plan, "-o", "model.pack"]
    if rounded_with_curvature(pack_plan):
        words += ["--curvature", curvature or "CURVATURE"]
    return shlex.join([*words, *opening.words])


def _checked(
    measured: Measured, limits: Limits, text: TextOptions, built: ModelOptions
) -> tuple[CheckedPlan, ...]:
    """All rounds of planning and measuring on a text."""
    from packer.planning.damage_trials import plan_and_check
    from packer.progress import shown

    checkpoint, calibration = measured.checkpoint, measured.calibration
    assert checkpoint is not None and calibration is not None
    text = text.with_tokenizer_beside([measured.measurement.source])
    with refusals(), running_foreign(built.model):
        data, model = text.open(), model_of(checkpoint, built)
        evaluator = evaluator_of(
            model, checkpoint, calibration.curvature, data, text, held_out=False
        )
        with shown("measuring plans") as progress:
            return plan_and_check(measured.measurement, limits, measured.pins, evaluator, progress)


def _what_if(pack_plan: PackPlan) -> tuple[WhatIf, ...]:
    from packer.budget.what_if import what_if
    from packer.planning.plan import restrict

    return what_if(restrict(pack_plan.measurement, pack_plan.pins), pack_plan.plan)


def _show(
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
