"""`packer compare`: published recipes against our plan, or checkpoints against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.calibrating import scores_of
from packer.commands.comparing import CALIBRATION, SCORED, Sizes
from packer.commands.load_calibration import load_calibration
from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options.curvature import CurvatureOptions
from packer.commands.options.groups import CALIBRATION as CALIBRATION_SECTION
from packer.commands.options.groups import OptionGroup, SectionedCommand, option, with_options
from packer.commands.options.model import COMPANION, MODEL, ModelOptions
from packer.commands.options.opening import CHECKPOINT_OPENING
from packer.commands.options.text import TextOptions
from packer.commands.options.types import (
    CODE,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MARGIN,
    PINS,
    TRELLIS,
    cap_option,
    measure_options,
    plan_limits,
    print_json,
    say_warnings,
)
from packer.devices import choose_device
from packer.errors import PackerError
from packer.planning.options import MeasureOptions, PlanLimits

if TYPE_CHECKING:
    from packer.evaluation import Data, Evaluated
    from packer.packing.comparison import Comparison, Entry, Refused, Row
    from packer.planning.account import Limits

MODELS_AT_ONCE = 8  # scored in one pass with the original; limits the memory


@dataclass(frozen=True)
class Scoring:
    """How files are scored against the checkpoint they come from."""

    data: Data
    tokens: int
    window: int
    built: ModelOptions


@click.command(
    "compare", cls=SectionedCommand, short_help="Score published recipes against our plan."
)
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@OptionGroup("limits", plan_limits, cap_option(required=True), CODE, MARGIN)
@OptionGroup("options", measure_options, PINS, TRELLIS)
@click.option(
    "--caps",
    type=Sizes(),
    default=(),
    metavar="A,B,C",
    help="Draw size/damage curves with these caps too, of our plans and of recipes with a tunable "
    "k, and report sizes at equal KL.",
)
@option(
    "--curvature",
    "curvature_files",
    section=CALIBRATION_SECTION,
    multiple=True,
    type=EXISTING_FILE,
    help="Read curvature that `packer calibrate` wrote; one for each checkpoint, in order.",
)
@click.option(
    "--with",
    "finished",
    multiple=True,
    type=EXISTING,
    metavar="FILE",
    help="Also score a finished file or folder of the same model (GGUF, GPTQ, AWQ, artifact or "
    "checkpoint), at its size on disk; repeat for more.",
)
@with_options(CALIBRATION, SCORED)
@OptionGroup("built", ModelOptions, COMPANION, MODEL, CHECKPOINT_OPENING)
@JSON
def compare(
    checkpoints: tuple[str, ...],
    limits: PlanLimits,
    options: MeasureOptions,
    caps: tuple[int, ...],
    curvature_files: tuple[str, ...],
    finished: tuple[str, ...],
    calibration: TextOptions,
    scored: TextOptions,
    built: ModelOptions,
    as_json: bool,
) -> None:
    """Pack each CHECKPOINT with every built-in recipe and with the planner, and score the files.

    \b
    packer compare model.pt --cap 1500000 --caps 1300000,1800000,2200000 \\
        --calibration train.txt --data valid.txt --tokenizer bpe.model

    KL and the difference in bits per byte are measured against the checkpoint itself, with every
    tensor read back from the file. Finished files (--with) are scored unchanged. Several
    checkpoints are each packed under the cap by the planner, and ranked by bits per byte of their
    files.
    """
    from packer.planning.code_size import weigh_limits

    _check_usage(checkpoints, caps, calibration, curvature_files)
    if finished and len(checkpoints) > 1:
        raise click.UsageError("--with compares with one checkpoint; give one")
    built.check()
    scored = scored.with_tokenizer_beside(checkpoints)
    text = replace(calibration, tokenizer=scored.tokenizer, bytes_table=scored.bytes_table)
    weighed = weigh_limits(limits)
    cap = weighed.cap_bytes
    with refusals(), running_foreign(built.model):
        data = scored.open()
        say_warnings(data.warnings)
        scoring = Scoring(data, scored.tokens, scored.window, built)
        # First, so that a file that cannot be scored is refused before minutes of packing.
        others = _others(checkpoints[0], finished, scoring)
        rows: list[Row] = []
        refused: list[Refused] = []
        for number, source in enumerate(checkpoints):
            file = curvature_files[number] if curvature_files else None
            curvature = CurvatureOptions(file, text, built)
            comparison = _comparison(source, curvature, weighed, options)
            entries = (
                _ours_alone(comparison, cap)
                if len(checkpoints) > 1
                else _all(comparison, cap, caps)
            )
            scored_rows, failed = _scored(source, entries, scoring)
            rows += scored_rows
            refused += failed
    packed_none = bool(refused) and not rows
    _show([*rows, *others], refused, len(checkpoints) > 1, as_json)
    if packed_none:
        raise PackerError("nothing fits under the cap")


def _check_usage(
    checkpoints: Sequence[str],
    caps: Sequence[int],
    calibration: TextOptions,
    curvature_files: Sequence[str],
) -> None:
    if not calibration.given and not curvature_files:
        raise click.UsageError(
            "give --calibration TEXT or --self-generate TOKENS, --curvature FILE, or both"
        )
    if calibration.data and calibration.self_generate is not None:
        raise click.UsageError("--self-generate takes the place of --calibration; give one")
    if curvature_files and len(curvature_files) != len(checkpoints):
        raise click.UsageError(
            f"{len(curvature_files)} --curvature files for {len(checkpoints)} checkpoints; each "
            "checkpoint has its own, in the same order"
        )
    if caps and len(checkpoints) > 1:
        raise click.UsageError("--caps draws the curve of one checkpoint; give one, or --cap alone")


def _comparison(
    source: str, curvature: CurvatureOptions, limits: Limits, options: MeasureOptions
) -> Comparison:
    from packer.packing.comparison import Comparison

    checkpoint = curvature.built.opening.read(source)
    return Comparison(checkpoint, limits, load_calibration(checkpoint, curvature), options)


def _all(comparison: Comparison, cap: int, caps: Sequence[int]) -> Iterator[Entry | Refused]:
    """Recipes and our plan under the cap; with --caps, also the curves of both."""
    from packer.packing.comparison import recipes_with_k
    from packer.progress import shown

    with shown("packing") as progress:
        comparison = replace(comparison, progress=progress)
        yield from comparison.recipes_under(cap)
        yield from comparison.ours_under(sorted({cap, *caps}))
        for recipe in recipes_with_k() if caps else ():
            yield from comparison.recipe_curve(recipe)


def _ours_alone(comparison: Comparison, cap: int) -> Iterator[Entry | Refused]:
    from packer.progress import shown

    with shown("packing") as progress:
        yield from replace(comparison, progress=progress).ours_under([cap])


def _others(source: str, finished: Sequence[str], scoring: Scoring) -> list[Row]:
    """A row for each finished file of the same model."""
    from packer.checkpoint.lazy_tensors import meta_tensors_of
    from packer.packing.comparison import Row
    from packer.packing.finished_files import FinishedFile, bytes_on_disk

    if not finished:
        return []
    checkpoint = scoring.built.opening.read(source)
    weights = sum(meta.numel() for meta in meta_tensors_of(checkpoint.tensors).values())
    files = [FinishedFile(path, bytes_on_disk(path), weights) for path in finished]
    rows: list[Row] = []
    for start in range(0, len(files), MODELS_AT_ONCE):
        group = files[start : start + MODELS_AT_ONCE]
        evaluated = _evaluated([source, *(file.recipe for file in group)], scoring)[1:]
        rows += [Row(source, f, e) for f, e in zip(group, evaluated, strict=True)]
    return rows


def _scored(
    source: str, tried: Iterator[Entry | Refused], scoring: Scoring
) -> tuple[list[Row], list[Refused]]:
    """Write every entry to a file, read it back and score it against its checkpoint."""
    from packer.packing.comparison import Entry, Row

    results = list(tried)
    entries = [one for one in results if isinstance(one, Entry)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(entries), MODELS_AT_ONCE):
            group = entries[start : start + MODELS_AT_ONCE]
            files = [Path(folder) / f"{start + number}.pack" for number in range(len(group))]
            for file, entry in zip(files, group, strict=True):
                file.write_bytes(entry.data)
            evaluated = _evaluated([source, *map(str, files)], scoring)[1:]
            rows += [Row(source, c, e) for c, e in zip(group, evaluated, strict=True)]
    return rows, [one for one in results if not isinstance(one, Entry)]


def _evaluated(sources: Sequence[str], scoring: Scoring) -> tuple[Evaluated, ...]:
    from packer.eval.batches import Setting, ignore

    device = choose_device(scoring.built.device)
    say = ignore  # the notes are the same for every file
    subjects = load_subjects(sources, scoring.built, device, say)
    return scores_of(subjects, scoring.data, Setting(scoring.window, tokens=scoring.tokens))


def _show(rows: Sequence[Row], refused: Sequence[Refused], several: bool, as_json: bool) -> None:
    from packer.packing.comparison import equal_kl_of
    from packer.reports.comparison_tables import print_comparison

    if several:
        rows = sorted(rows, key=lambda row: row.evaluated.score.bits_per_byte)
    equal = equal_kl_of(rows)
    if as_json:
        print_json(
            {
                "rows": [row.to_json() for row in rows],
                "refused": [vars(one) for one in refused],
                "equal_kl": [one.to_json() for one in equal],
            }
        )
    else:
        print_comparison(rows, equal, refused)
