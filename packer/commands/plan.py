"""`packer plan`: the choice for every tensor under a cap."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.calibrating import (
    CURVATURE,
    CURVATURE_OUT,
    CurvatureOptions,
    Felt,
    ModelOptions,
    TextOptions,
    bench_of,
    beside,
    feel,
    kept_curvature,
)
from packer.commands.models import refusals, running_foreign
from packer.commands.options import (
    CODE,
    CODER,
    CONFIG,
    DROP,
    EXISTING,
    JSON,
    MARGIN,
    MAX_MEMORY,
    PINS,
    TEMPLATE,
    WEIGHTS,
    WRITABLE,
    cap_option,
    print_json,
    read_config,
    refuse_overwriting,
    say_notes,
    with_options,
)

if TYPE_CHECKING:
    from packer.budget.frontier import WhatIf
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.planning import PackPlan
    from packer.trials import CheckedPlan

LOADER = click.option("--loader", is_flag=True, help="Count the loader's bytes too.")
WHAT_IF = click.option(
    "--what-if", is_flag=True, help="Also the damage at the cap ±50 KB and ±200 KB."
)


@click.command(short_help="A format for every tensor, under a cap.")
@click.argument("source", type=EXISTING)
@with_options(cap_option(required=True), CODE, LOADER, MARGIN, PINS, CODER)
@click.option("-o", "--output", type=WRITABLE, help="Write the plan here, for `packer pack`.")
@click.option(
    "--measure-on",
    multiple=True,
    metavar="PATH",
    help="Text or shards: measure what the plan really does there, fit and plan again, at most "
    "three times, and keep the best.",
)
@with_options(CURVATURE, CURVATURE_OUT, WHAT_IF, CONFIG, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def plan(
    source: str,
    cap: int,
    code: tuple[str, ...],
    loader: bool,
    margin: int,
    pins: tuple[tuple[str, str], ...],
    coder: str | None,
    output: str | None,
    measure_on: tuple[str, ...],
    curvature_file: str | None,
    calibration: tuple[str, ...],
    calibration_tokens: int,
    calibration_window: int,
    tokenizer: str | None,
    bytes_table: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    curvature_out: str | None,
    what_if: bool,
    config: str | None,
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Choose a format for every tensor, so that file and code fit the cap at the least damage.

    SOURCE is a checkpoint (or another author's artifact), which is measured first, or a file of
    measurements (candidates.json, or an earlier plan.json), which is planned anew in a second. With
    --calibration or --curvature, damage is predicted in bits per byte and GPTQ rounds.
    """
    from packer.account import Limits, count_code
    from packer.files import write_json
    from packer.ship import LARGEST_LOADER

    built = ModelOptions(config, model, model_config, device, weights, drop, template, max_memory)
    text = TextOptions(calibration, tokenizer, bytes_table, calibration_tokens, calibration_window)
    options = CurvatureOptions(curvature_file, text, built, curvature_out)
    options.check()
    for written in options.writes(output):
        inputs = [source, config, template, curvature_file, *code, *calibration, *measure_on]
        refuse_overwriting(inputs, written)
    limits = Limits(cap, count_code(code), LARGEST_LOADER * loader, margin)
    metadata = {} if measure_on and _is_json(source) else read_config(config)
    measured = _measured(source, options, dict(pins), coder, metadata, measure_on)
    checked: tuple[CheckedPlan, ...] = ()
    if measure_on:
        checked = _checked(measured, limits, replace(text, data=measure_on), built)
        made = min(checked, key=lambda one: one.measured).plan
    else:
        from packer.planning import make_plan

        made = make_plan(measured.measurement, limits, measured.pins)
    if output:
        write_json(output, made.to_json())
    kept = curvature_file
    if measured.felt is not None:
        kept = kept_curvature(measured.felt, options, output)
    elif kept is None and Path(beside(source)).is_file():
        kept = beside(source)
    changes = _what_if(made) if what_if else ()
    show(made, source, output, changes, as_json, checked)
    if output and not as_json:
        click.echo(f"next: {_next_command(made, output, kept, built)}")


def _next_command(made: PackPlan, plan: str, curvature: str | None, built: ModelOptions) -> str:
    """What packs this plan; the plan fits only the same weights without the same tensors."""
    from packer.planning import rounded_with_curvature

    words = ["packer", "pack", made.measurement.source, "--plan", plan, "-o", "model.pack"]
    if rounded_with_curvature(made):
        words += ["--curvature", curvature or "curvature.safetensors"]
    for option in ("weights", "template", "max_memory"):
        if built.opening[option]:
            words += [f"--{option.replace('_', '-')}", str(built.opening[option])]
    return shlex.join([*words, *(part for glob in built.drop for part in ("--drop", glob))])


@dataclass(frozen=True)
class _Measured:
    """What is planned from, and what it was measured with; loaded is None where nobody asked."""

    measurement: Measurement
    pins: dict[str, str]
    loaded: Checkpoint | None
    felt: Felt | None


def _is_json(source: str) -> bool:
    from packer.files import is_json

    return is_json(source)


def _measured(
    source: str,
    options: CurvatureOptions,
    pins: dict[str, str],
    coder: str | None,
    metadata: dict[str, str],
    measure_on: tuple[str, ...],
) -> _Measured:
    built = options.built
    if _is_json(source):  # nothing of this path needs torch: a new cap takes under a second
        if metadata or coder or options.text.data or any(built.opening.values()):
            raise click.UsageError(
                "--weights, --drop, --template, --max-memory, --config, --coder and --calibration "
                "need the checkpoint as SOURCE"
            )
        from packer.planning import read_measurement

        measurement, earlier = read_measurement(source)
        found = _Measured(measurement, {**earlier, **pins}, None, None)
        return _with_checkpoint(found, options) if measure_on else found
    from packer import measuring
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown

    loaded = read_checkpoint(source, **built.opening)
    say_notes(loaded.notes)
    felt = feel(source, loaded, options)
    with shown("measuring") as progress:
        measured = measuring.measure(
            loaded,
            pins=pins,
            metadata=metadata,
            curvature=felt.curvature,
            coder=coder,
            progress=progress,
        )
    return _Measured(felt.fitted(measured), pins, loaded, felt)


def _with_checkpoint(found: _Measured, options: CurvatureOptions) -> _Measured:
    """Measurements and the checkpoint they name. Raises PlanError: that has changed since."""
    from packer.checkpoint import contents_fingerprint, read_checkpoint
    from packer.errors import PlanError

    measurement = found.measurement
    loaded = read_checkpoint(measurement.source)
    if contents_fingerprint(loaded) != measurement.contents:
        raise PlanError(
            f"{measurement.source} has other contents than when it was measured; measure it again"
        )
    curvature = options.read(loaded)
    given = None if curvature is None else curvature.sha256
    if measurement.curvature is not None and given != measurement.curvature:
        raise PlanError(
            "the measurements were made with curvature "
            f"{measurement.curvature[:12]}: give that file, --curvature FILE"
        )
    return replace(found, loaded=loaded, felt=Felt(curvature, None))


def _checked(
    measured: _Measured, limits: Any, text: TextOptions, built: ModelOptions
) -> tuple[CheckedPlan, ...]:
    """Every round of a plan that is measured on a text."""
    from packer.progress import shown
    from packer.trials import plan_and_check

    assert measured.loaded is not None and measured.felt is not None
    with refusals(), running_foreign(built.model):
        data, model = text.open(), built.load(measured.measurement.source)
        curvature = measured.felt.curvature
        bench = bench_of(model, measured.loaded, curvature, data, text, held_out=False)
        with shown("measuring plans") as progress:
            return plan_and_check(measured.measurement, limits, measured.pins, bench, progress)


def _what_if(made: PackPlan) -> tuple[WhatIf, ...]:
    from packer.budget.frontier import what_if
    from packer.planning import restrict

    return what_if(restrict(made.measurement, made.pins), made.plan)


def show(
    made: PackPlan,
    source: str,
    output: str | None,
    changes: tuple[WhatIf, ...],
    as_json: bool,
    checked: tuple[CheckedPlan, ...] = (),
) -> None:
    """The plan as tables or JSON."""
    from packer.reports import tables
    from packer.reports.report import report_plan

    report = report_plan(made, source)
    if as_json:
        value = report.to_json()
        value["what_if"] = [
            {
                "offset_bytes": one.offset_bytes,
                "total_bytes": one.total_bytes,
                "damage": one.damage,
                "damage_change": one.damage_change,
            }
            for one in changes
        ]
        value["measured_rounds"] = [
            {"predicted_damage_bpb": one.predicted, "measured_damage_bpb": one.measured}
            for one in checked
        ]
        print_json({**value, "output": output})
        return
    tables.print_report(report, every_tensor=True)
    click.echo()
    click.echo(made.spell_account())
    click.echo(made.limits.spell_code())
    click.echo(spell_quality(made))
    for one in changes:
        click.echo(spell_what_if(one, made.plan.damage_kind))
    for number, tried in enumerate(checked, start=1):
        click.echo(spell_checked(number, tried) + ("; kept" if tried.plan is made else ""))


def spell_quality(made: PackPlan) -> str:
    """Damage, the price of a byte, and how far from the best plan this can be at most."""
    plan = made.plan
    price = f"; 1,000 more bytes would save {1000 * plan.price:.3g}" if plan.price else ""
    proof = (
        "proven optimal"
        if plan.gap == 0
        else f"the best plan is at most {100 * plan.gap:.2g} % lower"
    )
    text = f"predicted damage ({plan.damage_kind}) {plan.damage:.4g}{price}; {proof}"
    text += f"\ndamage is the {made.measurement.damage_source}"
    if made.measurement.damage_fit is not None:
        text += f"\nfitted to {made.measurement.damage_fit.spell()}"
    return text


def spell_checked(number: int, one: CheckedPlan) -> str:
    """Predicted against measured damage of one round."""
    text = f"round {number}: measured damage {one.measured:.4g}"
    if one.predicted is None or one.ratio is None:
        return text + ", predicted in other units"
    return text + f", predicted {one.predicted:.4g}, {one.ratio:.2f} times that"


def spell_what_if(one: WhatIf, damage_kind: str) -> str:
    where = f"at a cap of {one.cap_bytes:,} ({one.offset_bytes:+,})"
    if one.damage is None or one.damage_change is None:
        return f"{where}: nothing fits"
    return f"{where}: {damage_kind} {one.damage:.4g} ({one.damage_change:+.3g})"
