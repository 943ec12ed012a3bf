"""Options for tuning weights between the stages of rounding."""

from __future__ import annotations

from dataclasses import dataclass

import click

from packer.commands.options.curvature import CurvatureOptions
from packer.commands.options.groups import MAIN, OptionGroup, option
from packer.commands.options.types import POSITIVE, Finite


@dataclass(frozen=True)
class TuningOptions:
    """minutes: how long to tune; steps: how many steps. At most one is given."""

    minutes: float | None = None
    steps: int | None = None

    @property
    def given(self) -> bool:
        return self.minutes is not None or self.steps is not None

    def check(self, curvature: CurvatureOptions) -> None:
        """Raises UsageError: both, or no text to tune on."""
        if self.minutes is not None and self.steps is not None:
            raise click.UsageError("give --tune or --tune-steps, not both")
        if self.given and not curvature.text.data:
            raise click.UsageError(
                "--tune reads a text: give --calibration, a good deal of it (200,000 tokens are "
                "read in 100 steps)"
            )


TUNING = OptionGroup(
    "tuning",
    TuningOptions,
    option(
        "--tune",
        "minutes",
        section=MAIN,
        type=Finite(min=0, min_open=True),
        metavar="MINUTES",
        help="Move weights for MINUTES to make good the errors of those rounded before them.",
    ),
    option(
        "--tune-steps",
        "steps",
        section=MAIN,
        type=POSITIVE,
        metavar="N",
        help="Tune in N steps, which repeats the result of a --tune that took as many.",
    ),
)
