"""What `packer fix` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.fix_scores import SCORING, Bench, Scoring
from packer.commands.options.groups import OptionGroup
from packer.commands.options.limits import LimitOptions
from packer.commands.options.opening import Opening
from packer.commands.options.sections import MAIN, OUTPUT, option
from packer.commands.options.types import (
    CODE,
    EXISTING_FILE,
    JSON,
    MARGIN,
    cap_option,
)
from packer.planning.options import PlanLimits
from packer.submission.contest import CAP_BYTES

if TYPE_CHECKING:
    from packer.planning.account import Limits


@dataclass(frozen=True)
class FixOptions:
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
        return self.limits.cap or CAP_BYTES

    def count(self) -> Limits:
        """The limits in bytes, every file weighed. Raises PackerError: a file cannot be read."""
        from packer.planning.code_size import weigh_limits
        from packer.shipping.loader import RE_ENCODED, loader_source

        loader = len(loader_source(RE_ENCODED).encode()) if self.loader is not None else 0
        limits = self.limits
        return replace(
            weigh_limits(PlanLimits(self.cap, limits.code, margin_bytes=limits.margin)),
            loader_bytes=loader,
        )

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


FIX_OPTIONS = OptionGroup(
    "options",
    FixOptions,
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
    option(
        "--loader",
        section=OUTPUT,
        type=click.Path(dir_okay=False),
        help="Write (and count) the loader, a Python file, too.",
    ),
    SCORING,
    option(
        "-o",
        "--output",
        section=MAIN,
        type=click.Path(),
        help="The new artifact or folder to write.",
    ),
    option(
        "--checkpoint",
        section=MAIN,
        type=EXISTING_FILE,
        metavar="CKPT",
        help="What the artifact was made from: a plan of it is one more way under the cap.",
    ),
    JSON,
)
