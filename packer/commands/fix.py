"""`packer fix`: the cheapest way under the cap."""

from __future__ import annotations

from pathlib import Path

import click

from packer.commands.options.fix import FIX_OPTIONS, FixOptions
from packer.commands.options.sections import MAIN, SectionedCommand, option
from packer.commands.options.types import EXISTING, EXISTING_FILE


@click.command(cls=SectionedCommand, short_help="An artifact that is over the cap, under it.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@FIX_OPTIONS
@option(
    "--new",
    section=MAIN,
    is_flag=True,
    help="Make a submission of the folders of three finished runs.",
)
@click.option(
    "--about",
    type=EXISTING_FILE,
    metavar="JSON",
    help="With --new, what only its author knows: author, github_id, date, blurb, name.",
)
def fix(sources: tuple[str, ...], new: bool, about: str | None, options: FixOptions) -> None:
    """Bring SOURCES, an artifact (.ptz) or a submission folder, under the cap at the least cost.

    \b
    packer fix final_model.int6.ptz --code train_gpt.py -o fixed.pack --loader loader.py
    packer fix records/my_run -o fixed_run
    packer fix --new runs/seed1 runs/seed2 runs/seed3 -o records/my_run

    First without loss: the same codes under our coder, bit-identical weights, checked by decoding;
    in a folder also packed code and a corrected submission.json. If that is not enough, tensors
    are stored more coarsely, those that lose least for the bytes they save, or, with --checkpoint,
    its own weights are planned anew, whichever loses less. With --data and --tokenizer, that is
    measured before and after. Without -o, says what it
    would do. SOURCES are never touched.
    """
    from packer.commands.fix_artifact import fix_artifact
    from packer.commands.fix_folder import fix_submission
    from packer.commands.fix_new import make_new

    options.scoring.check()
    if new:
        options.check_new()
        max_memory = options.opening.max_memory
        make_new(sources, options.output, options.cap, about, max_memory, options.as_json)
        return
    if len(sources) != 1 or about is not None:
        raise click.UsageError("name one artifact or folder; several, and --about, go with --new")
    (source,) = sources
    options.check_source(source)
    if Path(source).is_dir():
        fix_submission(source, options)
    else:
        fix_artifact(source, options)
