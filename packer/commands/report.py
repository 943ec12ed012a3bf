"""`packer report`: where the bytes of a checkpoint, plan or artifact go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.artifact_files import reading_artifact
from packer.commands.options import (
    CODE,
    DROP,
    EXISTING,
    JSON,
    MAX_MEMORY,
    TEMPLATE,
    WEIGHTS,
    WRITABLE,
    cap_option,
    print_json,
    refuse_overwriting,
    say_notes,
    with_options,
)

if TYPE_CHECKING:
    from packer.planning import PackPlan
    from packer.reports.report import Report


@click.command(short_help="Where the bytes go.")
@click.argument("source", type=EXISTING)
@click.option("--explain", metavar="TENSOR", help="All candidates of one tensor, and why this one.")
@click.option("--plot", type=WRITABLE, help="Write a picture (PNG or SVG): bytes, and the curve.")
@with_options(cap_option(required=False, help="Cap for a source that has none."), CODE)
@with_options(WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def report(
    source: str,
    explain: str | None,
    plot: str | None,
    cap: int | None,
    code: tuple[str, ...],
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """The bytes of SOURCE per tensor and role, and the account.

    SOURCE is a checkpoint, a plan, an artifact, or another author's artifact (.ptz).
    """
    from packer.reports import tables
    from packer.reports.sources import load_report

    refuse_overwriting([source, *code], plot)
    with reading_artifact(source):
        found, plan = load_report(
            source,
            cap=cap,
            code=code,
            weights=weights,
            drop=drop,
            template=template,
            max_memory=max_memory,
        )
    say_notes(found.notes)
    if plot is not None:
        _plot(plot, found, plan)
    if explain is not None:
        _explain(explain, plan, source, as_json)
        return
    if as_json:
        print_json({**found.to_json(), "plot": plot})
        return
    tables.print_report(found, every_tensor=True)
    click.echo()
    click.echo(spell_account(found, plan))
    if plot is not None:
        click.echo(f"picture: {plot}")


def spell_account(found: Report, plan: PackPlan | None) -> str:
    """The account to the byte, as far as the source knows its parts."""
    if found.account is not None:
        return f"{found.source}: {found.account}"
    if plan is not None:
        return f"{plan.spell_account()}\n{plan.limits.spell_code()}"
    from packer.account import spell_rest

    rest = spell_rest(found.cap_bytes, found.unused_bytes)
    what = "artifact" if found.kind == "foreign" else "weights as stored"
    return f"code {found.code_bytes:,} + {what} {found.artifact_bytes:,} = " + (
        f"{found.total_bytes:,}{rest}"
    )


def _explain(tensor: str, plan: PackPlan | None, source: str, as_json: bool) -> None:
    from packer.reports import tables
    from packer.reports.explain import explain

    if plan is None:
        raise click.UsageError(f"--explain needs a plan, and {source} is none")
    lines = explain(plan, tensor)
    if as_json:
        print_json({"tensor": tensor, "candidates": [vars(line) for line in lines]})
        return
    rows = [
        (
            "->" if line.chosen else "",
            line.choice,
            f"{line.size_bytes:,}",
            f"{line.damage:.4g}",
            f"{line.cost:.4g}",
            line.verdict,
        )
        for line in lines
    ]
    columns = ("", "choice", ">bytes", f">{plan.plan.damage_kind}", ">damage + price × bytes")
    tables.console().print(tables.table((*columns, "why"), rows))


def _plot(path: str, found: Report, plan: PackPlan | None) -> None:
    from packer.reports.plots import plot_report

    plot_report(path, found, plan)
