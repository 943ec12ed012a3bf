"""`packer verify`: an artifact, checked by itself and against its checkpoint and plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.artifact.artifact_file import reading_artifact
from packer.commands.options.opening import CHECKPOINT_OPENING, Opening
from packer.commands.options.types import EXISTING, EXISTING_FILE, JSON, print_json, say
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.packing.verify import Verification

LISTED = 5  # problems in the error message; --json has them all


@click.command(short_help="Check that an artifact is intact.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option("--against", type=EXISTING, help="Compare with the checkpoint it was packed from.")
@click.option(
    "--plan", "plan_file", type=EXISTING_FILE, help="Compare with the plan it was packed from."
)
@click.option(
    "--curvature",
    type=EXISTING_FILE,
    help="Read curvature that `packer calibrate` wrote, to compare codes with +gptq too.",
)
@CHECKPOINT_OPENING
@JSON
def verify(
    artifact: str,
    against: str | None,
    plan_file: str | None,
    curvature: str | None,
    opening: Opening,
    as_json: bool,
) -> None:
    """Check ARTIFACT: checksum, decoding of every tensor, and finite weights.

    With --against, also print the error of each tensor, and compare unquantized tensors bit for
    bit. With --plan as well, quantizing again must give exactly the codes in the file; codes of
    choices with +gptq are compared only with --curvature.
    """
    from packer import api
    from packer.progress import shown

    if plan_file is not None and against is None:
        raise click.UsageError("--plan needs the checkpoint as well: --against CKPT")
    if curvature is not None and against is None:
        raise click.UsageError("--curvature needs the checkpoint as well: --against CKPT")
    checkpoint = None if against is None else opening.read(against)
    with shown("verifying") as progress, reading_artifact(artifact):
        result = api.verify(artifact, checkpoint, plan_file, progress, curvature=curvature)
    _show(result, artifact, against, as_json)
    if result.problems:
        more = len(result.problems) - LISTED
        rest = f"; and {more} more" if more > 0 else ""
        raise PackerError(f"{artifact} does not pass: {'; '.join(result.problems[:LISTED])}{rest}")


def _show(result: Verification, artifact: str, against: str | None, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "artifact": artifact,
                "artifact_bytes": result.artifact_bytes,
                "passed": not result.problems,
                "problems": list(result.problems),
                "tensors": [vars(check) for check in result.tensors],
            }
        )
        return
    if against is not None:
        _print_checks(result)
    if not result.problems:
        exact = sum(1 for check in result.tensors if check.exact)
        compared = f", {exact} of them bit for bit as in {against}" if against else ""
        say(
            f"{artifact}: {result.artifact_bytes:,} bytes, checksum right, "
            f"{len(result.tensors)} tensors decode{compared}"
        )


def _print_checks(result: Verification) -> None:
    from packer.reports import tables

    rows = [
        (
            check.name,
            check.format,
            "exact" if check.exact else tables.number(check.max_error, ".3g"),
            tables.number(check.relative_error, ".4f"),
            check.problem or "",
        )
        for check in result.tensors
    ]
    columns = ("tensor", "format", ">largest error", ">relative rms", "problem")
    tables.print_table(columns, rows)
