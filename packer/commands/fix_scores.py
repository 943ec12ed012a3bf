"""What `packer fix` does to the model: bits per byte and KL, measured through the files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import scores_of
from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options.groups import MAIN, OptionGroup, option
from packer.commands.options.model import MODEL, ModelOptions
from packer.commands.options.opening import ARTIFACT_OPENING, Opening
from packer.commands.options.scoring import ScoredText, Windows
from packer.commands.options.text import TOKENIZER
from packer.commands.options.types import CONFIG, POSITIVE, say_notes, say_warnings
from packer.devices import choose_device

if TYPE_CHECKING:
    from packer.evaluation import Evaluated, Subject

BEFORE = "as submitted"


@dataclass(frozen=True)
class Scoring:
    """How to score. Without data nothing is scored."""

    text: ScoredText
    windows: Windows
    built: ModelOptions

    def check(self) -> None:
        """Raises UsageError: options that need --data, without it."""
        text = self.text
        windows = vars(self.windows).values()
        if not text.data and any((text.tokenizer, text.bytes_table, *windows, self.built.model)):
            raise click.UsageError("the cost is measured on a text; name it with --data")
        if text.data:
            self.built.check_for_scoring()
        self.built.check()


SCORING = OptionGroup(
    "scoring",
    Scoring,
    OptionGroup(
        "text",
        ScoredText,
        option(
            "--data",
            section=MAIN,
            multiple=True,
            metavar="PATH",
            help="Measure the cost on this text, or token shards named .bin; repeat for more.",
        ),
        TOKENIZER,
    ),
    OptionGroup(
        "windows",
        Windows,
        click.option(
            "--tokens", type=POSITIVE, metavar="TOKENS", help="Measure only on the first TOKENS."
        ),
        click.option(
            "--window",
            type=POSITIVE,
            metavar="TOKENS",
            help="Score in windows of this many tokens.",
        ),
    ),
    OptionGroup("built", ModelOptions, MODEL, CONFIG, ARTIFACT_OPENING),
)


@dataclass(frozen=True)
class Bench:
    """Scores files of one model on one text.

    sources: the original artifact, after the checkpoint if there is one, from which KL is then
    measured.
    """

    scoring: Scoring
    sources: tuple[str, ...]
    opening: Opening

    def check(self) -> None:
        """Refuse early what `run` would refuse after minutes of work.

        Raises PackerError: no such data, no tokenizer, weights that do not fit the model.
        """
        with refusals(), running_foreign(self.scoring.built.model):
            say_warnings(self.scoring.text.open().warnings)
            self._subjects(self.sources, quiet=False)

    def run(self, files: Mapping[str, bytes]) -> dict[str, Evaluated]:
        """Scores by name: the original artifact under BEFORE, then every file."""
        with (
            tempfile.TemporaryDirectory() as folder,
            refusals(),
            running_foreign(self.scoring.built.model),
        ):
            paths = [Path(folder) / f"{number}.pack" for number in range(len(files))]
            for path, data in zip(paths, files.values(), strict=True):
                path.write_bytes(data)
            subjects = self._subjects((*self.sources, *map(str, paths)), quiet=True)
            names = [*self.sources[:-1], BEFORE, *files]
            named = [replace(one, name=n) for one, n in zip(subjects, names, strict=True)]
            setting = self.scoring.windows.setting(named[0])
            evaluated = scores_of(named, self.scoring.text.open(), setting)
        return {one.subject.name: one for one in evaluated[len(self.sources) - 1 :]}

    def _subjects(self, sources: tuple[str, ...], *, quiet: bool) -> list[Subject]:
        from packer.eval.batches import ignore

        built = replace(self.scoring.built, opening=self.opening)
        device = choose_device(built.device)
        return load_subjects(sources, built, device, ignore if quiet else say_notes)


def describe_scores(scores: Mapping[str, Evaluated], chosen: str, reference: str) -> str:
    """Before and after, in a sentence."""
    before, after = scores[BEFORE], scores[chosen]
    texts = [f"{before.score.bits_per_byte:.6f} -> {after.score.bits_per_byte:.6f} bits per byte"]
    for name, one in ((BEFORE, before), ("now", after)):
        if one.divergence is not None:
            texts.append(f"KL {name} {one.divergence.kl_bits_per_byte:.6f}")
    return f"measured on {after.score.tokens:,} tokens: {', '.join(texts)} (from {reference})"
