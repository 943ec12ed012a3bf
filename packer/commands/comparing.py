"""Options of `packer compare`: what to calibrate on, and what to score on."""

from __future__ import annotations

from typing import Any

import click

from packer.commands.options import sections
from packer.commands.options.groups import OptionGroup
from packer.commands.options.sections import MAIN, option
from packer.commands.options.text import (
    CALIBRATION_SIZE,
    EFFORT,
    SELF_GENERATE,
    TOKENIZER,
    TextOptions,
    calibration_text,
)
from packer.commands.options.types import POSITIVE, Size

SCORED_TOKENS, SCORED_WINDOW = 32_768, 256


class Sizes(click.ParamType):  # type: ignore[type-arg]
    """Sizes with commas between them, each as for --cap."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        sizes = tuple(Size().convert(part, param, ctx) for part in parts)
        grouped = (part == "000" or (part.isdecimal() and 0 < int(part) < 1000) for part in parts)
        if len(parts) > 1 and any(grouped):
            self.fail(
                f"{value!r}: commas stand between sizes; write each without, as 16000000 or 15.5MB",
                param,
                ctx,
            )
        if min(sizes) <= 0:
            self.fail(f"{value!r}: a cap is at least 1 byte", param, ctx)
        return sizes


CALIBRATION = OptionGroup(
    "calibration",
    calibration_text,
    option(
        "--calibration",
        section=MAIN,
        multiple=True,
        metavar="PATH",
        help="Text or shards: calibrate on them (unless --curvature is given), and fit our "
        "predicted damage to true measurements on their end; repeat for more.",
    ),
    CALIBRATION_SIZE,
    EFFORT,
    option(
        "--self-generate",
        section=sections.CALIBRATION,
        type=SELF_GENERATE,
        metavar="TOKENS",
        help="In place of --calibration: so many tokens that the model writes itself, at "
        "temperature 0.8.",
    ),
)
SCORED = OptionGroup(
    "scored",
    TextOptions,
    option(
        "--data",
        section=MAIN,
        multiple=True,
        required=True,
        metavar="PATH",
        help="Text or shards to score on, not those of --calibration; repeat for more.",
    ),
    TOKENIZER,
    click.option(
        "--tokens",
        type=POSITIVE,
        default=SCORED_TOKENS,
        show_default=True,
        help="How many tokens to score.",
    ),
    click.option(
        "--window",
        type=POSITIVE,
        default=SCORED_WINDOW,
        show_default=True,
        help="What a model sees at once in scoring; windows stand back to back.",
    ),
)
