"""Options for the text that models are scored on, and how it is cut into windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from packer.commands.options.groups import MAIN, OptionGroup, option
from packer.commands.options.text import BYTES_TABLE, SHARDS_TOO, Text
from packer.commands.options.types import EXISTING_FILE, POSITIVE

if TYPE_CHECKING:
    from packer.eval.batches import Setting
    from packer.evaluation import Data, Subject

DEFAULT_WINDOW = 1024  # what the contest's models were trained with


@dataclass(frozen=True)
class ScoredText(Text):
    """bytes_sidecar: for shards, the bytes of text behind each token."""

    bytes_sidecar: tuple[str, ...] = ()
    document_separator: str | None = None

    def open(self) -> Data:
        from packer.evaluation import open_data

        options = {name: value for name, value in vars(self).items() if name != "data"}
        return open_data(self.data, **options)


@dataclass(frozen=True)
class Windows:
    """window: tokens of one forward pass. stride: how many of each window are scored.

    tokens: how many in all. batch: windows at a time. None: the model's own window, or all.
    """

    window: int | None = None
    stride: int | None = None
    tokens: int | None = None
    batch: int | None = None

    def setting(self, subject: Subject, rank: int = 0, world_size: int = 1) -> Setting:
        """How to score a model, as process `rank` of `world_size`."""
        from packer.eval.batches import Setting
        from packer.eval.forward import device_of

        trained = getattr(getattr(subject.model, "config", None), "rope_train_length", None)
        longest = getattr(subject.model, "longest_window", None) or DEFAULT_WINDOW
        return Setting(
            window=self.window or trained or min(longest, DEFAULT_WINDOW),
            stride=self.stride,
            tokens=self.tokens,
            batch=self.batch,
            autocast=device_of(subject.model).type == "cuda",
            rank=rank,
            world_size=world_size,
        )


TEXT = OptionGroup(
    "text",
    ScoredText,
    option("--data", section=MAIN, multiple=True, required=True, metavar="PATH", help=SHARDS_TOO),
    option(
        "--tokenizer",
        section=MAIN,
        type=EXISTING_FILE,
        help="Tokenize the data with this sentencepiece model or tokenizer.json; default: the one "
        "next to a source.",
    ),
    BYTES_TABLE,
    click.option(
        "--bytes-sidecar",
        multiple=True,
        metavar="PATH",
        help="Read the bytes of text behind each token from these shards; repeat for more.",
    ),
    click.option(
        "--document-separator", metavar="TEXT", help="Split a text into documents at TEXT."
    ),
)
WINDOWS = OptionGroup(
    "windows",
    Windows,
    click.option(
        "--window",
        type=POSITIVE,
        metavar="TOKENS",
        help="Score in windows of this many tokens; default: the model's rope_train_length, else "
        "1024 or what its configuration allows.",
    ),
    click.option(
        "--stride",
        type=POSITIVE,
        metavar="TOKENS",
        help="Score the last TOKENS of each window; default: all, windows back to back.",
    ),
    click.option("--tokens", type=POSITIVE, metavar="TOKENS", help="Score only the first TOKENS."),
    click.option(
        "--batch",
        type=POSITIVE,
        metavar="WINDOWS",
        help="Run this many windows at a time; changes the speed only.",
    ),
)
