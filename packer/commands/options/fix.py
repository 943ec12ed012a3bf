"""Options of `packer fix`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.fix_scores import SCORING, Bench, Scoring
from packer.commands.options.groups import MAIN, OUTPUT, OptionGroup, option
from packer.commands.options.opening import Opening
from packer.commands.options.types import CODE, EXISTING_FILE, JSON, MARGIN, cap_option, plan_limits
from packer.planning.options import PlanLimits
from packer.submission.contest import CAP_BYTES

if TYPE_CHECKING:
    from packer.planning.account import Limits


@dataclass(frozen=True)
class FixOptions:
    """All options of `packer fix`. output: the artifact or folder to write, if any."""

    output: str | None
    limits: PlanLimits
    lossless: bool
    no_recode: bool
    loader: str | None
    checkpoint: str | None
    scoring: Scoring
    as_json: bool

    @property
    def cap(self) -> int:
        return self.limits.cap_bytes or CAP_BYTES

    def count(self) -> Limits:
        """The limits in bytes. Raises PackerError: a file counted as code cannot be read."""
        from packer.planning.code_size import weigh_limits
        from packer.shipping.loader import RE_ENCODED, loader_source

        loader = len(loader_source(RE_ENCODED).encode()) if self.loader is not None else 0
        weighed = weigh_limits(replace(self.limits, cap_bytes=self.cap))
        return replace(weighed, loader_bytes=loader)

    @property
    def config(self) -> str | None:
        return self.scoring.built.config

    @property
    def opening(self) -> Opening:
        """How to read the artifact: dtypes from the template, else from the checkpoint."""
        opening = self.scoring.built.opening
        return replace(opening, template=opening.template or self.checkpoint)

    def bench(self, artifact: str) -> Bench | None:
        """A bench that scores files made from an artifact; None without --data."""
        if not self.scoring.text.data:
            return None
        original = (self.checkpoint,) if self.checkpoint is not None else ()
        return Bench(self.scoring, (*original, artifact), self.opening)

    def check_new(self) -> None:
        """Raises UsageError: options that have no meaning with --new."""
        limits, built = self.limits, self.scoring.built
        refused = {
            "--code": limits.code,
            "--margin": limits.margin_bytes,
            "--lossless": self.lossless,
            "--no-recode": self.no_recode,
            "--loader": self.loader,
            "--checkpoint": self.checkpoint,
            "--data": self.scoring.text.data,
            "--config": built.config,
            "--template": built.opening.template,
        }
        clashing = [name for name, value in refused.items() if value]
        if clashing:
            raise click.UsageError(
                f"--new cannot be combined with {', '.join(clashing)}; allowed are -o, --cap, "
                "--about, --max-memory and --json"
            )

    def check_source(self, source: str) -> None:
        """Raises UsageError: --no-recode with a folder or an option that needs another layout."""
        others = self.lossless or self.loader or self.checkpoint or Path(source).is_dir()
        if self.no_recode and others:
            raise click.UsageError(
                "--no-recode is for one artifact file, whose own code reads the result; it cannot "
                "be combined with --lossless, --loader or --checkpoint"
            )


FIX_OPTIONS = OptionGroup(
    "options",
    FixOptions,
    OptionGroup(
        "limits",
        plan_limits,
        cap_option(required=False, help="Limit code and artifact together to SIZE; default: 16MB."),
        CODE,
        MARGIN,
    ),
    click.option(
        "--lossless", is_flag=True, help="Change no weight: only re-encode the same codes."
    ),
    click.option(
        "--no-recode",
        is_flag=True,
        help="Keep the artifact's own layout and codec, so that its own code reads it; only make "
        "codes coarser.",
    ),
    option(
        "--loader",
        section=OUTPUT,
        type=click.Path(dir_okay=False),
        help="Write the loader, a Python file, and count its bytes.",
    ),
    SCORING,
    option(
        "-o",
        "--output",
        section=MAIN,
        type=click.Path(),
        help="Write the new artifact or folder here.",
    ),
    option(
        "--checkpoint",
        section=MAIN,
        type=EXISTING_FILE,
        metavar="CKPT",
        help="Also try planning anew from CKPT, the weights that the artifact was made from.",
    ),
    JSON,
)
