"""`packer pack --polish`: its options, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from packer.commands.curvature_options import CurvatureOptions
from packer.commands.felt import Felt
from packer.commands.option_groups import OptionGroup
from packer.commands.options import POSITIVE, Finite, say

if TYPE_CHECKING:
    from packer.planning import PackPlan
    from packer.polishing.outcome import PolishOutcome
    from packer.polishing.polished_file import Polisher

DEFAULT_STEPS = 240


@dataclass(frozen=True)
class PolishOptions:
    """minutes: at most so long; None: no polish. steps: at most so many."""

    minutes: float | None
    steps: int

    def check(self, recipe: str | None, curvature: CurvatureOptions) -> None:
        """Raises UsageError: nothing to polish on, or a recipe, which is to be as it is known."""
        if self.minutes is None:
            return
        if not curvature.text.given:
            raise click.UsageError(
                "--polish tunes the file on calibration text, and there is none: name text or "
                "shards with --calibration (beside --curvature too), never those that you "
                "evaluate on"
            )
        if recipe is not None:
            raise click.UsageError("--polish goes with --cap, --plan or --policy, not --recipe")

    @property
    def room_bytes(self) -> int:
        """What a plan is to leave free for it."""
        if self.minutes is None:
            return 0
        from packer.polishing.polished_file import ROOM_BYTES

        return ROOM_BYTES

    def check_plan(self, made: PackPlan | None) -> None:
        """Raises PolishError: a plan that leaves no room."""
        from packer.polishing.polished_file import check_room

        if self.minutes is not None and made is not None:
            check_room(made)

    def polisher(self, felt: Felt, window: int) -> Polisher | None:
        """What `api.pack` is to tune by; window: what the model sees at once."""
        if self.minutes is None:
            return None
        from packer.polishing.distilling import Pace
        from packer.polishing.polished_file import Polisher

        assert felt.bench is not None and felt.text is not None
        return Polisher(
            felt.bench.meter,
            felt.text,
            window,
            seconds=60 * self.minutes,
            pace=Pace(self.steps),
            held_out=felt.bench.source,
        )


POLISH = OptionGroup(
    "polish",
    PolishOptions,
    click.option(
        "--polish",
        "minutes",
        type=Finite(min=0, min_open=True),
        metavar="MINUTES",
        help="Tune all but the codes to the unquantized model on the text of --calibration, for at "
        "most so long; kept if its held-out end is better off. Costs no byte.",
    ),
    click.option(
        "--polish-steps",
        "steps",
        type=POSITIVE,
        default=DEFAULT_STEPS,
        show_default=True,
        help="Steps of the polish, of about 2,048 tokens each.",
    ),
)


def say_polish(result: PolishOutcome) -> None:
    """What it gave, and where the clock decided, that too."""
    kl = f"KL {result.before:.6f} -> {result.after:.6f} bits per byte on {result.held_out}"
    took = f"{result.steps} steps, {result.seconds:.0f} s"
    verdict = "polished" if result.kept else "not polished, because it did not help"
    worth = ""
    if result.kept and result.worth_bytes is not None:
        worth = f"; worth about {result.worth_bytes:,} bytes at the plan's price"
    say(f"{verdict}: {kl} ({result.held_out_tokens:,} tokens), {took}{worth}")
    if result.cut_short:
        say(
            "the minutes ended the polish early: another run may do more or fewer steps and give "
            "other bytes; allow more, or fewer --polish-steps"
        )
