"""`packer eval`: bits per byte of checkpoints and artifacts, paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import scores_of
from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options.groups import OUTPUT, OptionGroup, SectionedCommand, option
from packer.commands.options.model import COMPANION, MODEL, ModelOptions
from packer.commands.options.opening import OPENING
from packer.commands.options.scoring import TEXT, WINDOWS, ScoredText, Windows
from packer.commands.options.types import (
    EXISTING,
    JSON,
    print_json,
    say,
    say_notes,
    say_warnings,
)
from packer.devices import choose_device, joined
from packer.printable import spelled

if TYPE_CHECKING:
    from packer.eval.batches import Setting
    from packer.evaluation import Data, Evaluated, Subject


@dataclass(frozen=True)
class Shown:
    """How to show the scores. sample: a prompt to continue."""

    sample: str | None
    markdown: bool
    as_json: bool


SHOWN = OptionGroup(
    "shown",
    Shown,
    option(
        "--sample",
        section=OUTPUT,
        metavar="PROMPT",
        help="Print each model's continuation of PROMPT.",
    ),
    option("--markdown", section=OUTPUT, is_flag=True, help="Print the table as Markdown."),
    JSON,
)


@click.command(
    "eval", cls=SectionedCommand, short_help="Score checkpoints and artifacts in bits per byte."
)
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@TEXT
@WINDOWS
@OptionGroup("built", ModelOptions, COMPANION, MODEL, OPENING)
@click.option(
    "--reference", metavar="SOURCE", help="Compare the others with SOURCE; default: the first."
)
@SHOWN
def evaluate(
    sources: tuple[str, ...],
    text: ScoredText,
    windows: Windows,
    built: ModelOptions,
    reference: str | None,
    shown: Shown,
) -> None:
    """Score SOURCES in bits per byte on the same tokens.

    \b
    packer eval model.pt model.pack --data valid.txt --tokenizer bpe.model \\
        --window 1024 --stride 64

    SOURCES are checkpoints, artifacts of ours or of other authors. With several, also print each
    one's difference from the first with its standard error, the KL divergence from it in bits per
    byte, and how often both predict the same token. Under torchrun the windows are divided among
    the processes.
    """
    from packer import evaluation
    from packer.eval.batches import ignore

    chosen = _reference(sources, reference)
    built.check_for_scoring()
    text = text.with_tokenizer_beside(sources)
    if shown.sample is not None and text.tokenizer is None:
        raise click.UsageError("--sample needs the tokenizer: name it with --tokenizer")
    device = choose_device(built.device)
    with refusals(), joined(device) as (rank, world_size):
        say = say_notes if rank == 0 else ignore
        data = text.open()
        with running_foreign(built.model):
            subjects = load_subjects(sources, built, device, say)
            setting = windows.setting(subjects[chosen], rank, world_size)
            # Before generating a sample, which would fail less clearly.
            evaluation.check_models(subjects, data, setting, lambda text: say([text]))
            continuations = _continue(subjects, data, shown.sample, setting.window)
            evaluated = scores_of(subjects, data, setting, chosen, say)
        if rank == 0:
            _show(evaluated, data, setting, chosen, continuations, shown)


def _reference(sources: Sequence[str], reference: str | None) -> int:
    """Index of the reference in `sources`. Raises UsageError: it is not one of them."""
    if reference is None:
        return 0
    resolved = [Path(source).resolve() for source in sources]
    if Path(reference).resolve() not in resolved:
        raise click.UsageError(
            f"--reference {reference} is not one of the sources: {', '.join(sources)}"
        )
    return resolved.index(Path(reference).resolve())


def _continue(
    subjects: Sequence[Subject], data: Data, prompt: str | None, window: int
) -> list[str]:
    from packer.eval.sample import continue_text

    if prompt is None:
        return []
    return [
        continue_text(subject.model, data.tokenizer, prompt, context=window) for subject in subjects
    ]


def _show(
    scores: Sequence[Evaluated],
    data: Data,
    setting: Setting,
    reference: int,
    continuations: Sequence[str],
    shown: Shown,
) -> None:
    from packer.reports import score_tables

    implausible = score_tables.byte_warning(scores[0], data)
    warnings = [*data.warnings, *([implausible] if implausible else [])]
    if shown.as_json:
        print_json(
            {
                "scores": [one.to_json() for one in scores],
                "reference": scores[reference].subject.name if len(scores) > 1 else None,
                "precision": "bfloat16" if setting.autocast else "float32",
                "processes": setting.world_size,
                "text_bytes": data.text_bytes,
                "warnings": warnings,
                "samples": list(continuations),
            }
        )
        return
    score_tables.print_scores(scores, data, markdown=shown.markdown)
    say_warnings(warnings)
    for one, text in zip(scores, continuations, strict=False):
        say(f"\n{spelled(one.subject.name)}:\n{text}", lines=True)
