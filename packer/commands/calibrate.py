"""`packer calibrate`: how much every weight is felt, on a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import curvature_of
from packer.commands.models import refusals, running_foreign, subjects_of
from packer.commands.options.groups import OptionGroup
from packer.commands.options.model import COMPANION, MODEL, ModelOptions
from packer.commands.options.opening import CHECKPOINT_OPENING
from packer.commands.options.sections import CALIBRATION, MAIN, SectionedCommand, option
from packer.commands.options.text import (
    DEFAULT_TOKENS,
    DEFAULT_WINDOW,
    EFFORT,
    SELF_GENERATE,
    SHARDS_TOO,
    TOKENIZER,
    TextOptions,
)
from packer.commands.options.types import (
    EXISTING,
    JSON,
    POSITIVE,
    WRITABLE,
    print_json,
    refuse_overwriting,
    say,
    say_notes,
)
from packer.commands.own_tokenizer import with_own_tokenizer
from packer.commands.self_generated import generate_text
from packer.devices import choose_device, joined

if TYPE_CHECKING:
    from packer.curvature.curvature_set import CurvatureSet

LISTED = 8  # warnings printed one by one
TEXT = OptionGroup(
    "text",
    TextOptions,
    option("--data", section=MAIN, multiple=True, metavar="PATH", help=SHARDS_TOO),
    option(
        "--self-generate",
        section=CALIBRATION,
        type=SELF_GENERATE,
        metavar="TOKENS",
        help="Calibrate on so many tokens that the model writes itself, at temperature 0.8.",
    ),
    TOKENIZER,
    option(
        "--tokens",
        section=CALIBRATION,
        type=POSITIVE,
        default=DEFAULT_TOKENS,
        show_default=True,
        help="How many tokens to calibrate on.",
    ),
    option(
        "--window",
        section=CALIBRATION,
        type=POSITIVE,
        default=DEFAULT_WINDOW,
        show_default=True,
        metavar="TOKENS",
        help="What the model sees at once.",
    ),
    EFFORT,
)


@click.command(cls=SectionedCommand, short_help="Curvature of every weight, on a text.")
@click.argument("checkpoint", type=EXISTING)
@TEXT
@option(
    "-o",
    "--output",
    section=MAIN,
    type=WRITABLE,
    default="curvature.safetensors",
    show_default=True,
)
@OptionGroup("built", ModelOptions, COMPANION, MODEL, CHECKPOINT_OPENING)
@JSON
def calibrate(
    checkpoint: str, text: TextOptions, output: str, built: ModelOptions, as_json: bool
) -> None:
    """Measure on a text how much every weight of CHECKPOINT is felt.

    \b
    packer calibrate model.pt --data train.txt --tokenizer bpe.model --tokens 32768 --window 512

    For every linear map the second moment of its inputs and the Fisher of its outputs, labels drawn
    from the model itself; for tables how often each row is read. The time it took is printed,
    because where a contest counts it, it counts as training; --seconds limits it. One that is cut
    off goes on from OUTPUT.partial when the same command is given again. Under torchrun the text is
    divided over the processes, and what they write is what one would.
    """
    from packer.checkpoint.any_weights import weights_of
    from packer.checkpoint.checkpoint import read_checkpoint
    from packer.curvature.file import write_curvature
    from packer.eval.batches import ignore

    if bool(text.data) == (text.self_generate is not None):
        raise click.UsageError("give --data, or --self-generate TOKENS in its place")
    text = with_own_tokenizer(text, [checkpoint])
    kept_at = f"{output}.partial"
    for written in (output, kept_at):
        refuse_overwriting([checkpoint, *text.inputs, *built.inputs], written)
    built.check()
    place = choose_device(built.device)
    with refusals(), joined(place) as ranks, running_foreign(built.model):
        if text.self_generate is not None and ranks[1] > 1:
            raise click.UsageError("--self-generate is for one process; calibrate on --data")
        opened = text.open() if text.self_generate is None else None
        loaded = read_checkpoint(checkpoint, **built.opening.arguments)
        say_first = say_notes if ranks[0] == 0 else ignore
        say_first(loaded.notes)
        (subject,) = subjects_of([weights_of(loaded)], built, place, say_first)
        model, spent = subject.model, 0.0
        if text.self_generate is not None:
            opened, text, spent = generate_text(model, replace(text, tokens=text.self_generate))
        assert opened is not None
        found = curvature_of(model, loaded, opened, text, kept_at, ranks)
    if ranks[0] > 0:
        return
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
        say(f"warning: {warning}", err=True)
    if len(found.warnings) > LISTED:
        say(f"warning: and {len(found.warnings) - LISTED} more, see --json", err=True)
    say(f"{output}: curvature of {len(found.by_tensor)} tensors, {found.describe()}")
