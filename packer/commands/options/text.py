"""Which text, and how much of it, a command was told to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.sections import CALIBRATION, MAIN, option
from packer.commands.options.types import EXISTING_FILE, POSITIVE, Finite, with_options

if TYPE_CHECKING:
    from packer.evaluation import Data

DEFAULT_TOKENS = 32_768
DEFAULT_WINDOW = 512

SHARDS_TOO = "Text, or token shards named .bin: a file or a glob; repeat for more."
SELF_GENERATE = click.IntRange(min=2)  # a token, and one to predict
TOKENIZER = with_options(
    option(
        "--tokenizer",
        section=MAIN,
        type=EXISTING_FILE,
        help="The text's sentencepiece model or tokenizer.json; default: the one beside the "
        "weights.",
    ),
    click.option(
        "--bytes-table", type=EXISTING_FILE, help="Bytes per token of another tokenizer (JSON)."
    ),
)
EFFORT = with_options(
    option(
        "--seconds",
        section=CALIBRATION,
        type=Finite(min=0, min_open=True),
        help="Calibrate no longer than this.",
    ),
    option(
        "--seed", section=CALIBRATION, type=int, default=0, help="Of the labels drawn; default 0."
    ),
)
CALIBRATION_SIZE = with_options(
    option(
        "--calibration-tokens",
        section=CALIBRATION,
        type=POSITIVE,
        default=DEFAULT_TOKENS,
        show_default=True,
        help="How many tokens to calibrate on.",
    ),
    option(
        "--calibration-window",
        section=CALIBRATION,
        type=POSITIVE,
        default=DEFAULT_WINDOW,
        show_default=True,
        help="What the model sees at once in calibration.",
    ),
)


@dataclass(frozen=True)
class TextOptions:
    """data: text or shards. tokens: how many to read. window: what the model sees at once.

    seconds: read no longer. seed: of the labels drawn.
    self_generate: calibrate on so many tokens that the model writes, in place of data.
    """

    data: Sequence[str]
    tokenizer: str | None = None
    bytes_table: str | None = None
    tokens: int = DEFAULT_TOKENS
    window: int = DEFAULT_WINDOW
    seconds: float | None = None
    seed: int = 0
    self_generate: int | None = None

    @property
    def given(self) -> bool:
        """Whether there is any text, be it the model's own."""
        return bool(self.data) or self.self_generate is not None

    @property
    def inputs(self) -> tuple[str | None, ...]:
        """Every file that is read, to be checked against what is written."""
        return (*self.data, self.tokenizer, self.bytes_table)

    def open(self) -> Data:
        """The text's tokens. Raises PackerError, EvalError."""
        from packer.evaluation import open_data

        return open_data(self.data, tokenizer=self.tokenizer, bytes_table=self.bytes_table)


def calibration_text(
    calibration: Sequence[str], calibration_tokens: int, calibration_window: int, **others: Any
) -> TextOptions:
    """Of the options of commands that calibrate on one text, and may read another."""
    return TextOptions(calibration, tokens=calibration_tokens, window=calibration_window, **others)
