"""`packer fix`: shrink an artifact or submission below the cap."""

from __future__ import annotations

from pathlib import Path

import click

from packer.commands.options.fix import FIX_OPTIONS, FixOptions
from packer.commands.options.groups import MAIN, SectionedCommand, option
from packer.commands.options.types import EXISTING, EXISTING_FILE


@click.command(cls=SectionedCommand, short_help="Shrink an oversized artifact below the cap.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@FIX_OPTIONS
@option(
    "--new",
    section=MAIN,
    is_flag=True,
    help="Make a submission folder from the folders of three finished runs.",
)
@click.option(
    "--about",
    type=EXISTING_FILE,
    metavar="JSON",
    help="With --new, read author, github_id, date, blurb and name from JSON.",
)
def fix(sources: tuple[str, ...], new: bool, about: str | None, options: FixOptions) -> None:
    """Shrink SOURCES, an artifact (.ptz) or a submission folder, below the cap at the least cost.

    \b
    packer fix final_model.int6.ptz --code train_gpt.py \\
        -o fixed.pack --loader loader.py
    packer fix records/my_run -o fixed_run
    packer fix --new runs/seed1 runs/seed2 runs/seed3 -o records/my_run

    Tries without loss first: the same codes with our entropy coder, bit-identical weights, checked
    by decoding; in a folder, also packed code and a corrected submission.json. If that is not
    enough, stores tensors more coarsely, those first that lose least per byte saved; with
    --checkpoint, also plans the original weights anew, and takes whichever loses less. With --data
    and --tokenizer, measures the model before and after. Without -o, only prints what it would do.
    SOURCES are never modified.
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
        raise click.UsageError("name one artifact or folder; several, or --about, need --new")
    (source,) = sources
    options.check_source(source)
    if Path(source).is_dir():
        fix_submission(source, options)
    else:
        fix_artifact(source, options)
