"""`packer report`: where the bytes of a checkpoint, plan or artifact go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.artifact.artifact_file import reading_artifact
from packer.commands.options.groups import with_options
from packer.commands.options.opening import OPENING, Opening
from packer.commands.options.types import (
    CODE,
    EXISTING,
    EXISTING_FILE,
    JSON,
    WRITABLE,
    cap_option,
    print_json,
    refuse_overwriting,
    say,
    say_notes,
)

if TYPE_CHECKING:
    from packer.planning.plan import PackPlan
    from packer.planning.shannon_bound import BoundedPlan
    from packer.reports.report_data import CodeHistogram, ReportData


@click.command(short_help="Show where the bytes go: table, page, picture.")
@click.argument("source", type=EXISTING)
@click.option(
    "--html",
    "page",
    type=WRITABLE,
    help="Write one self-contained page: the account, a map of the bytes, bits per weight as a "
    "heat map, the size/damage curve, histograms of codes, predicted against measured damage.",
)
@click.option("--plot", type=WRITABLE, help="Write the page's figures as a picture: PNG, SVG, PDF.")
@click.option(
    "--compare",
    "compared",
    type=EXISTING_FILE,
    metavar="ROWS.json",
    help="Draw the files that `packer compare --json` printed on the curve.",
)
@click.option(
    "--curvature",
    type=EXISTING_FILE,
    help="Read the curvature of a plan, and print how far the plan is from the Shannon bound.",
)
@click.option(
    "--checkpoint",
    type=EXISTING,
    metavar="CKPT",
    help="With --curvature, read the plan's checkpoint from here, if it has moved.",
)
@click.option(
    "--explain", metavar="TENSOR", help="List all candidates of one tensor, and why one was chosen."
)
@with_options(cap_option(required=False, help="Use this cap for a source that has none."), CODE)
@with_options(OPENING, JSON)
def report(
    source: str,
    page: str | None,
    plot: str | None,
    compared: str | None,
    curvature: str | None,
    checkpoint: str | None,
    explain: str | None,
    cap: int | None,
    code: tuple[str, ...],
    opening: Opening,
    as_json: bool,
) -> None:
    """Show the bytes of SOURCE per tensor and role, and the account.

    SOURCE is a checkpoint, a plan, an artifact, or another author's artifact (.ptz). For a plan,
    also show the damage, the price of a byte and the size/damage curve.

    \b
    packer report plan.json --html plan.html \\
        --curvature plan.curvature.safetensors
    packer report model.pack --html model.html --compare rows.json
    """
    from packer.reports.report_data import read_compared, report_data
    from packer.reports.sources import load_histograms, load_report

    for written in (page, plot):
        refuse_overwriting([source, compared, curvature, checkpoint, *code], written)
    if page is not None and page == plot:
        raise click.UsageError(f"{page} cannot be both the page and the picture")
    with reading_artifact(source):
        summary, plan = load_report(source, cap=cap, code=code, **opening.arguments)
        histograms: tuple[CodeHistogram, ...] = ()
        if page is not None or plot is not None:
            allowed = opening.max_memory
            histograms = load_histograms(
                source, summary, template=opening.template, max_memory=allowed
            )
    say_notes(summary.notes)
    data = report_data(
        summary,
        plan,
        bounded=_bounded(plan, source, curvature, checkpoint, opening),
        compared=read_compared(compared) if compared else (),
        histograms=histograms,
    )
    _write(data, page, plot)
    if explain is not None:
        _explain(explain, plan, source, as_json)
    elif as_json:
        print_json({**summary.to_json(), **data.to_json(), "html": page, "plot": plot})
    else:
        _show(data, page, plot)


def _bounded(
    plan: PackPlan | None,
    source: str,
    curvature: str | None,
    checkpoint: str | None,
    opening: Opening,
) -> BoundedPlan | None:
    from packer.reports.sources import load_bounded

    if curvature is None:
        if checkpoint is not None:
            raise click.UsageError("--checkpoint goes with --curvature")
        return None
    if plan is None:
        raise click.UsageError(f"--curvature is for a plan, and {source} is none")
    return load_bounded(plan, curvature, checkpoint, weights=opening.weights, drop=opening.drop)


def _write(data: ReportData, page: str | None, plot: str | None) -> None:
    if plot is not None:
        from packer.reports.page import pictures_of
        from packer.reports.pictures import plot_pictures

        plot_pictures(plot, pictures_of(data))
    if page is not None:
        from packer.files import write_bytes
        from packer.reports.page import describe_page

        write_bytes(page, describe_page(data).encode())


def _show(data: ReportData, page: str | None, plot: str | None) -> None:
    from packer.reports import tables
    from packer.reports.describe import describe_account, describe_bound, describe_quality

    tables.print_report(data.report, every_tensor=True)
    say("")
    if data.points:
        tables.print_table(*tables.curve_rows(data))
        say("")
    say(describe_account(data.report, data.plan), lines=True)
    if data.plan is not None:
        say(describe_quality(data.plan), lines=True)
    if bound := describe_bound(data):
        say(bound)
    for what, path in (("page", page), ("picture", plot)):
        if path is not None:
            say(f"{what}: {path}")


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
    tables.print_table((*columns, "why"), rows)
