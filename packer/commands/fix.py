"""`packer fix`: the cheapest way under the cap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from packer.commands.fix_scores import SCORING, Bench, Scoring
from packer.commands.options import (
    CODE,
    CONFIG,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    MAX_MEMORY,
    TEMPLATE,
    cap_option,
    with_options,
)

CONTEST_CAP = 16_000_000


@dataclass(frozen=True)
class Asked:
    """What the command line asked for. template: for the dtypes; the checkpoint, if no other."""

    output: str | None
    cap: int
    code: tuple[str, ...]
    margin: int
    lossless: bool
    no_recode: bool
    loader: str | None
    checkpoint: str | None
    template: str | None
    max_memory: int | None
    scoring: Scoring
    as_json: bool

    def bench(self, artifact: str) -> Bench | None:
        """What measures files made of an artifact; None without data."""
        if not self.scoring.data:
            return None
        original = (self.checkpoint,) if self.checkpoint is not None else ()
        return Bench(self.scoring, (*original, artifact), self.template, self.max_memory)


@click.command(short_help="An artifact that is over the cap, under it.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@click.option("-o", "--output", type=click.Path(), help="The new artifact or folder to write.")
@with_options(
    cap_option(required=False, help="Byte limit, code included; default: 16MB."), CODE, MARGIN
)
@click.option(
    "--new", is_flag=True, help="Make a submission of the folders of three finished runs."
)
@click.option(
    "--about",
    type=EXISTING_FILE,
    metavar="JSON",
    help="With --new, what only its author knows: author, github_id, date, blurb, name.",
)
@click.option("--lossless", is_flag=True, help="Change no weight: re-encode the same codes only.")
@click.option(
    "--no-recode",
    is_flag=True,
    help="Keep the artifact's own layout and codec, so that its code reads it: coarser codes only.",
)
@click.option(
    "--loader",
    type=click.Path(dir_okay=False),
    help="Write (and count) the loader, a Python file, too.",
)
@click.option(
    "--checkpoint",
    type=EXISTING_FILE,
    metavar="CKPT",
    help="What the artifact was made from: a plan of it is one more way under the cap.",
)
@with_options(SCORING, CONFIG, TEMPLATE, MAX_MEMORY, JSON)
def fix(
    sources: tuple[str, ...],
    output: str | None,
    cap: int | None,
    code: tuple[str, ...],
    margin: int,
    new: bool,
    about: str | None,
    lossless: bool,
    no_recode: bool,
    loader: str | None,
    checkpoint: str | None,
    data: tuple[str, ...],
    tokenizer: str | None,
    bytes_table: str | None,
    tokens: int | None,
    window: int | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    config: str | None,
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
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

    scoring = Scoring(
        data, tokenizer, bytes_table, tokens, window, config, model, model_config, device
    )
    scoring.check()
    if new:
        others = (code, margin, lossless, no_recode, loader, checkpoint, data, config, template)
        if any(others):
            raise click.UsageError("--new goes with -o, --cap, --about, --max-memory and --json")
        make_new(sources, output, cap or CONTEST_CAP, about, max_memory, as_json)
        return
    if len(sources) != 1 or about is not None:
        raise click.UsageError("name one artifact or folder; several, and --about, go with --new")
    (source,) = sources
    if no_recode and (lossless or loader or checkpoint or Path(source).is_dir()):
        raise click.UsageError(
            "--no-recode is for one artifact file, whose own code reads the result; it goes "
            "without --lossless, --loader and --checkpoint"
        )
    asked = Asked(
        output=output,
        cap=cap or CONTEST_CAP,
        code=code,
        margin=margin,
        lossless=lossless,
        no_recode=no_recode,
        loader=loader,
        checkpoint=checkpoint,
        template=template or checkpoint,
        max_memory=max_memory,
        scoring=scoring,
        as_json=as_json,
    )
    if Path(source).is_dir():
        fix_submission(source, asked)
    else:
        fix_artifact(source, asked)
