"""`packer inspect`: what is in a checkpoint."""

from __future__ import annotations

import click

from packer.commands.options.opening import OPENING, Opening
from packer.commands.options.types import EXISTING, JSON, print_json, say, say_notes


@click.command(short_help="List the tensors of a checkpoint.")
@click.argument("checkpoint", type=EXISTING)
@OPENING
@JSON
def inspect(checkpoint: str, opening: Opening, as_json: bool) -> None:
    """List the tensors of CHECKPOINT: role, shape, dtype, bytes, share, rms and kurtosis.

    CHECKPOINT may be another author's artifact (.ptz), which is decoded, or a GGUF file. The
    kurtosis of a Gaussian is 3.
    """
    loaded = opening.load(checkpoint)
    from packer import api
    from packer.progress import shown
    from packer.reports import tables

    with shown("inspecting") as progress:
        statistics = api.inspect(loaded, progress)
    if as_json:
        tensors = [{**vars(one), "role": one.role.value} for one in statistics]
        sizes = {"source": loaded.source, "size_bytes": loaded.size_bytes}
        print_json({**sizes, "notes": loaded.notes, "ties": loaded.ties, "tensors": tensors})
        return
    say_notes(loaded.notes)
    rows = [
        (
            one.name + "".join(f" = {tied}" for tied in one.tied),
            one.role.value,
            "-" if one.layer is None else str(one.layer),
            tables.shape_text(one.shape),
            one.dtype,
            f"{one.size_bytes:,}",
            f"{100 * one.share:.2f}",
            tables.number(one.rms, ".4g"),
            tables.number(one.kurtosis, ".2f"),
        )
        for one in statistics
    ]
    columns = ("tensor", "role", ">layer", "shape", "dtype", ">bytes", ">share %", ">rms")
    tables.print_table((*columns, ">kurtosis"), rows)
    say(f"{len(rows)} tensors, {loaded.size_bytes:,} bytes as stored")
