"""`packer verify`: whether an artifact is whole, and what it lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.artifact.artifact_file import reading_artifact
from packer.commands.options.opening import CHECKPOINT_OPENING, Opening
from packer.commands.options.types import EXISTING, EXISTING_FILE, JSON, print_json, say
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.packing.verify import Verification

SAID = 5  # problems told in a refusal; --json has them all


@click.command(short_help="Whether an artifact is whole.")
@click.argument("artifact", type=EXISTING_FILE)
@click.option("--against", type=EXISTING, help="The checkpoint it was packed from.")
@click.option("--plan", "plan_file", type=EXISTING_FILE, help="The plan it was packed by.")
@click.option(
    "--curvature",
    type=EXISTING_FILE,
    help="What `packer calibrate` wrote for the checkpoint: codes of choices with +gptq are "
    "compared too.",
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

    With --against, the error of each tensor, and passthrough tensors bit for bit. With --plan too,
    quantizing again must give the very codes in the file; those of choices with +gptq are compared
    where --curvature is given.
    """
    from packer import api
    from packer.progress import shown

    if plan_file is not None and against is None:
        raise click.UsageError("--plan needs the checkpoint as well: --against CKPT")
    if curvature is not None and against is None:
        raise click.UsageError("--curvature needs the checkpoint as well: --against CKPT")
    checkpoint = None if against is None else opening.read(against)
    with shown("verifying") as progress, reading_artifact(artifact):
        found = api.verify(artifact, checkpoint, plan_file, progress, curvature=curvature)
    _show(found, artifact, against, as_json)
    if found.problems:
        more = len(found.problems) - SAID
        rest = f"; and {more} more" if more > 0 else ""
        raise PackerError(f"{artifact} does not pass: {'; '.join(found.problems[:SAID])}{rest}")


def _show(found: Verification, artifact: str, against: str | None, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "artifact": artifact,
                "artifact_bytes": found.artifact_bytes,
                "passed": not found.problems,
                "problems": list(found.problems),
                "tensors": [vars(check) for check in found.tensors],
            }
        )
        return
    if against is not None:
        _print_checks(found)
    if not found.problems:
        exact = sum(1 for check in found.tensors if check.exact)
        compared = f", {exact} of them bit for bit as in {against}" if against else ""
        say(
            f"{artifact}: {found.artifact_bytes:,} bytes, checksum right, "
            f"{len(found.tensors)} tensors decode{compared}"
        )


def _print_checks(found: Verification) -> None:
    from packer.reports import tables

    rows = [
        (
            check.name,
            check.format,
            "exact" if check.exact else tables.number(check.max_error, ".3g"),
            tables.number(check.relative_error, ".4f"),
            check.problem or "",
        )
        for check in found.tensors
    ]
    columns = ("tensor", "format", ">largest error", ">relative rms", "problem")
    tables.print_table(columns, rows)
