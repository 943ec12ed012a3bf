"""What `packer fix` did to the model, measured: bits per byte and KL, through the files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import MODEL, TOKENIZER
from packer.commands.eval import setting_of
from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options import say_notes, with_options
from packer.commands.processes import choose_device

if TYPE_CHECKING:
    from packer.evaluation import Data, Evaluated, Subject

BEFORE = "as submitted"
POSITIVE = click.IntRange(min=1)
SCORING = with_options(
    click.option(
        "--data",
        multiple=True,
        metavar="PATH",
        help="Measure what it costs on this text, or token shards named .bin; repeat for more.",
    ),
    TOKENIZER,
    click.option("--tokens", type=POSITIVE, help="Measure on the first so many only."),
    click.option("--window", type=POSITIVE, metavar="TOKENS", help="What a model sees at once."),
    MODEL,
)


@dataclass(frozen=True)
class Scoring:
    """How to measure. Without data nothing is."""

    data: tuple[str, ...]
    tokenizer: str | None
    bytes_table: str | None
    tokens: int | None
    window: int | None
    config: str | None
    model: str | None
    model_config: str | None
    device: str | None

    def check(self) -> None:
        """Raises UsageError: options that go with others."""
        given = (self.tokenizer, self.bytes_table, self.tokens, self.window, self.model)
        if not self.data and any(given):
            raise click.UsageError("what it costs is measured on a text: name it with --data")
        if self.model is None and self.model_config is not None:
            raise click.UsageError("--model-config goes with --model; the companion takes --config")
        if self.model is not None and self.config is not None and self.data:
            raise click.UsageError("--config is the companion's; with --model, use --model-config")


@dataclass(frozen=True)
class Bench:
    """Scores files of one model on one text. sources: the checkpoint, if there is one, which is
    then what KL is measured from, and the artifact as it was.
    """

    scoring: Scoring
    sources: tuple[str, ...]
    template: str | None
    max_memory: int | None

    def check(self) -> None:
        """Loads and scores nothing, but refuses before minutes of work what would be after them.

        Raises PackerError: no such data, no tokenizer, weights that are not of the model.
        """
        with refusals(), running_foreign(self.scoring.model):
            self._open()
            self._subjects(self.sources, quiet=False)

    def run(self, files: Mapping[str, bytes]) -> dict[str, Evaluated]:
        """The artifact as it was under BEFORE, then every file under its name."""
        from packer.evaluation import evaluate
        from packer.progress import shown

        with tempfile.TemporaryDirectory() as made, refusals(), running_foreign(self.scoring.model):
            paths = [Path(made) / f"{number}.pack" for number in range(len(files))]
            for path, data in zip(paths, files.values(), strict=True):
                path.write_bytes(data)
            subjects = self._subjects((*self.sources, *map(str, paths)), quiet=True)
            names = [*self.sources[:-1], BEFORE, *files]
            named = [replace(one, name=n) for one, n in zip(subjects, names, strict=True)]
            setting = setting_of(
                named[0], self.scoring.window, None, self.scoring.tokens, None, 0, 1
            )
            with shown("scoring") as tell:
                found = evaluate(
                    named,
                    self._open(),
                    setting,
                    progress=lambda done, total: tell("tokens", done, total),
                    notice=lambda text: say_notes([text]),
                )
        return {one.subject.name: one for one in found[len(self.sources) - 1 :]}

    def _open(self) -> Data:
        from packer.evaluation import open_data

        scoring = self.scoring
        return open_data(scoring.data, tokenizer=scoring.tokenizer, bytes_table=scoring.bytes_table)

    def _subjects(self, sources: tuple[str, ...], *, quiet: bool) -> list[Subject]:
        from packer.eval.batches import ignore

        return load_subjects(
            sources,
            device=choose_device(self.scoring.device),
            weights=None,
            drop=(),
            config=self.scoring.config if self.scoring.model is None else None,
            model=self.scoring.model,
            model_config=self.scoring.model_config,
            say=ignore if quiet else say_notes,
            template=self.template,
            max_memory=self.max_memory,
        )


def spell_scores(scores: Mapping[str, Evaluated], chosen: str, reference: str) -> str:
    """Before and after, in a sentence."""
    before, after = scores[BEFORE], scores[chosen]
    texts = [f"{before.score.bits_per_byte:.6f} -> {after.score.bits_per_byte:.6f} bits per byte"]
    for name, one in ((BEFORE, before), ("now", after)):
        if one.divergence is not None:
            texts.append(f"KL {name} {one.divergence.kl_bits_per_byte:.6f}")
    return f"measured on {after.score.tokens:,} tokens: {', '.join(texts)} (from {reference})"
