"""`packer plan`: the choice for every tensor under a cap."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options import (
    CODE,
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
    from packer.planning import PackPlan

LOADER = click.option("--loader", is_flag=True, help="Count the loader's bytes too.")
WHAT_IF = click.option(
    "--what-if", is_flag=True, help="Also the damage at the cap ±50 KB and ±200 KB."
)


@click.command(short_help="A format for every tensor, under a cap.")
@click.argument("source", type=EXISTING)
@with_options(cap_option(required=True), CODE, LOADER, MARGIN, PINS)
@click.option("-o", "--output", type=WRITABLE, help="Write the plan here, for `packer pack`.")
@with_options(WHAT_IF, CONFIG, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def plan(
    source: str,
    cap: int,
    code: tuple[str, ...],
    loader: bool,
    margin: int,
    pins: tuple[tuple[str, str], ...],
    output: str | None,
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
    measurements (candidates.json, or an earlier plan.json), which is planned anew in a second.
    """
    from packer.account import Limits, count_code
    from packer.files import write_json

    refuse_overwriting([source, config, template, *code], output)
    loader_bytes = _loader_bytes() if loader else 0
    limits = Limits(cap, count_code(code), loader_bytes, margin)
    opening = {"weights": weights, "drop": drop, "template": template, "max_memory": max_memory}
    made = _plan(source, limits, dict(pins), read_config(config), opening)
    if output:
        write_json(output, made.to_json())
    changes = _what_if(made) if what_if else ()
    show(made, source, output, changes, as_json)
    if output and not as_json:
        click.echo(f"next: {_next_command(made.measurement.source, output, opening)}")


def _next_command(checkpoint: str, plan: str, opening: Mapping[str, Any]) -> str:
    """What packs this plan; the plan fits only the same weights without the same tensors."""
    words = ["packer", "pack", checkpoint, "--plan", plan, "-o", "model.pack"]
    for option in ("weights", "template", "max_memory"):
        if opening[option]:
            words += [f"--{option.replace('_', '-')}", str(opening[option])]
    return shlex.join([*words, *(part for glob in opening["drop"] for part in ("--drop", glob))])


def _loader_bytes() -> int:
    from packer.ship import loader_source

    return len(loader_source().encode())


def _plan(
    source: str,
    limits: Any,
    pins: dict[str, str],
    metadata: dict[str, str],
    opening: Mapping[str, Any],
) -> PackPlan:
    from packer.files import is_json
    from packer.planning import make_plan, read_measurement

    if is_json(source):  # nothing of this path needs torch: a new cap takes under a second
        if metadata or any(opening.values()):
            raise click.UsageError(
                "--weights, --drop, --template, --max-memory and --config need the checkpoint as "
                "SOURCE"
            )
        measurement, earlier = read_measurement(source)
        return make_plan(measurement, limits, {**earlier, **pins})
    from packer import measuring
    from packer.checkpoint import read_checkpoint
    from packer.progress import shown

    loaded = read_checkpoint(source, **opening)
    say_notes(loaded.notes)
    with shown("measuring") as progress:
        measured = measuring.measure(loaded, pins=pins, metadata=metadata, progress=progress)
    return make_plan(measured, limits, pins)


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
) -> None:
    """The plan as tables or JSON."""
    from packer import tables
    from packer.report import report_plan

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
        print_json({**value, "output": output})
        return
    tables.print_report(report, every_tensor=True)
    click.echo()
    click.echo(made.spell_account())
    click.echo(made.limits.spell_code())
    click.echo(spell_quality(made))
    for one in changes:
        click.echo(spell_what_if(one, made.plan.damage_kind))


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
    if plan.damage_kind == "weight_error":
        text += f"\ndamage is the {made.measurement.damage_source}"
    return text


def spell_what_if(one: WhatIf, damage_kind: str) -> str:
    where = f"at a cap of {one.cap_bytes:,} ({one.offset_bytes:+,})"
    if one.damage is None or one.damage_change is None:
        return f"{where}: nothing fits"
    return f"{where}: {damage_kind} {one.damage:.4g} ({one.damage_change:+.3g})"
