"""`packer fix`: the cheapest way under the cap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.fix_scores import SCORING, Bench, Scoring
from packer.commands.limit_options import LimitOptions
from packer.commands.opening import Opening
from packer.commands.option_groups import OptionGroup
from packer.commands.options import (
    CODE,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    cap_option,
)

if TYPE_CHECKING:
    from packer.account import Limits

CONTEST_CAP = 16_000_000


@dataclass(frozen=True)
class Asked:
    """What the command line asked for. output: the artifact or folder to write, if any."""

    output: str | None
    limits: LimitOptions
    lossless: bool
    no_recode: bool
    loader: str | None
    checkpoint: str | None
    scoring: Scoring
    as_json: bool

    @property
    def cap(self) -> int:
        return self.limits.cap or CONTEST_CAP

    def count(self) -> Limits:
        """The limits in bytes, every file weighed. Raises PackerError: a file cannot be read."""
        from packer.ship import RE_ENCODED, loader_source

        loader = len(loader_source(RE_ENCODED).encode()) if self.loader is not None else 0
        return replace(replace(self.limits, cap=self.cap).count(), loader_bytes=loader)

    @property
    def config(self) -> str | None:
        return self.scoring.built.config

    @property
    def opening(self) -> Opening:
        """How the artifact is read: dtypes by the template, or if there is none the checkpoint."""
        opening = self.scoring.built.opening
        return replace(opening, template=opening.template or self.checkpoint)

    def bench(self, artifact: str) -> Bench | None:
        """What measures files made of an artifact; None without data."""
        if not self.scoring.text.data:
            return None
        original = (self.checkpoint,) if self.checkpoint is not None else ()
        return Bench(self.scoring, (*original, artifact), self.opening)

    def check_new(self) -> None:
        """Raises UsageError: options that say nothing where a submission is made."""
        limits, built = self.limits, self.scoring.built
        decided = (limits.code, limits.margin, self.lossless, self.no_recode, self.loader)
        given = (self.checkpoint, self.scoring.text.data, built.config, built.opening.template)
        if any((*decided, *given)):
            raise click.UsageError("--new goes with -o, --cap, --about, --max-memory and --json")

    def check_source(self, source: str) -> None:
        """Raises UsageError: what only an artifact of its own file can be asked for."""
        others = self.lossless or self.loader or self.checkpoint or Path(source).is_dir()
        if self.no_recode and others:
            raise click.UsageError(
                "--no-recode is for one artifact file, whose own code reads the result; it goes "
                "without --lossless, --loader and --checkpoint"
            )


ASKED = OptionGroup(
    "asked",
    Asked,
    click.option("-o", "--output", type=click.Path(), help="The new artifact or folder to write."),
    OptionGroup(
        "limits",
        LimitOptions,
        cap_option(required=False, help="Byte limit, code included; default: 16MB."),
        CODE,
        MARGIN,
    ),
    click.option(
        "--lossless", is_flag=True, help="Change no weight: re-encode the same codes only."
    ),
    click.option(
        "--no-recode",
        is_flag=True,
        help="Keep the artifact's own layout and codec, so that its code reads it: coarser codes "
        "only.",
    ),
    click.option(
        "--loader",
        type=click.Path(dir_okay=False),
        help="Write (and count) the loader, a Python file, too.",
    ),
    click.option(
        "--checkpoint",
        type=EXISTING_FILE,
        metavar="CKPT",
        help="What the artifact was made from: a plan of it is one more way under the cap.",
    ),
    SCORING,
    JSON,
)


@click.command(short_help="An artifact that is over the cap, under it.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--new", is_flag=True, help="Make a submission of the folders of three finished runs."
)
@click.option(
    "--about",
    type=EXISTING_FILE,
    metavar="JSON",
    help="With --new, what only its author knows: author, github_id, date, blurb, name.",
)
@ASKED
def fix(sources: tuple[str, ...], new: bool, about: str | None, asked: Asked) -> None:
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

    asked.scoring.check()
    if new:
        asked.check_new()
        max_memory = asked.opening.max_memory
        make_new(sources, asked.output, asked.cap, about, max_memory, asked.as_json)
        return
    if len(sources) != 1 or about is not None:
        raise click.UsageError("name one artifact or folder; several, and --about, go with --new")
    (source,) = sources
    asked.check_source(source)
    if Path(source).is_dir():
        fix_submission(source, asked)
    else:
        fix_artifact(source, asked)
