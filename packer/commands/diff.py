"""`packer diff`: what changed between two plans or artifacts."""

from __future__ import annotations

import click

from packer.artifact.artifact_file import reading_artifact
from packer.commands.options.types import EXISTING, JSON, print_json, say


@click.command(short_help="Compare two plans or artifacts.")
@click.argument("before", type=EXISTING)
@click.argument("after", type=EXISTING)
@JSON
def diff(before: str, after: str, as_json: bool) -> None:
    """List tensors whose format or size differs between BEFORE and AFTER, plans or artifacts."""
    from packer.reports import tables
    from packer.reports.difference import compare
    from packer.reports.report import row_json
    from packer.reports.sources import load_report

    with reading_artifact(before):
        first, _ = load_report(before)
    with reading_artifact(after):
        second, _ = load_report(after)
    differences = compare(first, second)
    if as_json:
        print_json(
            {
                "before": {"source": before, "total_bytes": first.total_bytes},
                "after": {"source": after, "total_bytes": second.total_bytes},
                "tensors": [
                    {
                        "name": one.name,
                        "before": row_json(one.before) if one.before else None,
                        "after": row_json(one.after) if one.after else None,
                        "size_change": one.size_change,
                    }
                    for one in differences
                ],
            }
        )
        return
    if differences:
        tables.print_table(*tables.difference_rows(differences))
    change = second.total_bytes - first.total_bytes
    say(
        f"{len(differences)} tensors differ; total {first.total_bytes:,} -> "
        f"{second.total_bytes:,} bytes ({change:+,})"
    )
