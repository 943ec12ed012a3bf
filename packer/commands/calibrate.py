"""`packer calibrate`: how much every weight is felt, on a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import (
    AMOUNT,
    MODEL,
    TOKENIZER,
    ModelOptions,
    TextOptions,
    curvature_of,
    written_by,
)
from packer.commands.models import refusals, running_foreign
from packer.commands.options import (
    DROP,
    EXISTING,
    EXISTING_FILE,
    JSON,
    WEIGHTS,
    WRITABLE,
    print_json,
    refuse_overwriting,
    with_options,
)

if TYPE_CHECKING:
    from packer.curvature.curvature_set import CurvatureSet

LISTED = 8  # warnings printed one by one


@click.command(short_help="Curvature of every weight, on a text.")
@click.argument("checkpoint", type=EXISTING)
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    help="Text, or token shards named .bin: a file or a glob; repeat for more.",
)
@click.option(
    "--self-generate",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Calibrate on so many tokens that the model writes itself, at temperature 0.8.",
)
@with_options(TOKENIZER, AMOUNT)
@click.option("-o", "--output", type=WRITABLE, default="curvature.safetensors", show_default=True)
@click.option(
    "--config",
    type=EXISTING_FILE,
    help="The companion model's configuration (JSON or TOML); default: the one that the "
    "checkpoint carries, or NAME.config.json beside it.",
)
@with_options(MODEL, WEIGHTS, DROP, JSON)
def calibrate(
    checkpoint: str,
    data: tuple[str, ...],
    self_generate: int | None,
    tokenizer: str | None,
    bytes_table: str | None,
    tokens: int,
    window: int,
    seconds: float | None,
    seed: int,
    output: str,
    config: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    weights: str | None,
    drop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure on a text how much every weight of CHECKPOINT is felt.

    \b
    packer calibrate model.pt --data train.txt --tokenizer bpe.model --tokens 32768 --window 512

    For every linear map the second moment of its inputs and the Fisher of its outputs, labels drawn
    from the model itself; for tables how often each row is read. The time it took is printed,
    because where a contest counts it, it counts as training; --seconds limits it. One that is cut
    off goes on from OUTPUT.partial when the same command is given again.
    """
    from packer.checkpoint import read_checkpoint
    from packer.curvature.file import write_curvature

    if bool(data) == (self_generate is not None):
        raise click.UsageError("give --data, or --self-generate TOKENS in its place")
    kept_at = f"{output}.partial"
    for written in (output, kept_at):
        inputs = [checkpoint, *data, tokenizer, bytes_table, config, model_config]
        refuse_overwriting(inputs, written)
    built = ModelOptions(config, model, model_config, device, weights, drop)
    built.check()
    text = TextOptions(data, tokenizer, bytes_table, tokens, window, seconds, seed)
    with refusals(), running_foreign(model):
        opened = text.open() if self_generate is None else None
        loaded = read_checkpoint(checkpoint, weights=weights, drop=drop)
        made = built.load(checkpoint)
        spent = 0.0
        if opened is None:
            assert self_generate is not None
            opened, text, spent = written_by(made, replace(text, tokens=self_generate))
        found = curvature_of(made, checkpoint, loaded, opened, text, kept_at)
    found = replace(found, seconds=found.seconds + spent)
    write_curvature(output, found)
    Path(kept_at).unlink(missing_ok=True)
    _show(found, output, as_json)


def _show(found: CurvatureSet, output: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "output": output,
                "sha256": found.sha256,
                **found.provenance(),
                "tensors": sorted(found.by_tensor),
            }
        )
        return
    for warning in found.warnings[:LISTED]:
        click.echo(f"warning: {warning}", err=True)
    if len(found.warnings) > LISTED:
        click.echo(f"warning: and {len(found.warnings) - LISTED} more, see --json", err=True)
    click.echo(f"{output}: curvature of {len(found.by_tensor)} tensors, {found.spell()}")
