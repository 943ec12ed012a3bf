"""A model on a text: its curvature, its scores, and an evaluator of the damage of plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from packer.commands.options.types import say_notes

if TYPE_CHECKING:
    from torch import Tensor

    from packer.checkpoint.checkpoint import Checkpoint
    from packer.commands.options.text import TextOptions
    from packer.curvature.curvature_set import CurvatureSet
    from packer.curvature.resume import ResumeFile
    from packer.eval.batches import Setting
    from packer.eval.forward import AnyModel
    from packer.evaluation import Data, Evaluated, Subject
    from packer.planning.damage_trials import Calibration, DamageEvaluator


def calibration_of(
    model: AnyModel,
    checkpoint: Checkpoint,
    data: Data,
    text: TextOptions,
    spent: float,
    curvature: CurvatureSet | None = None,
) -> Calibration:
    """Curvature on all but the end of a text, unless it is given, and an evaluator on that end.

    spent: seconds that generating the text took. Raises PackerError, EvalError.
    """
    from packer.planning.damage_trials import Calibration, held_out_part

    if curvature is None:
        first, _ = held_out_part(len(data.stream), text.tokens, text.window)
        seen = replace(text, tokens=max(min(text.tokens, first), text.window))
        curvature = curvature_of(model, checkpoint, data, seen)
        curvature = replace(curvature, seconds=curvature.seconds + spent)
        say_notes([f"calibrated on {curvature.describe()}", *curvature.warnings])
    evaluator = evaluator_of(model, checkpoint, curvature, data, text, held_out=True)
    return Calibration(curvature, evaluator)


def curvature_of(
    model: AnyModel,
    checkpoint: Checkpoint,
    data: Data,
    text: TextOptions,
    kept_at: str | None = None,
    ranks: tuple[int, int] = (0, 1),
) -> CurvatureSet:
    """Curvature on windows evenly spaced over a text, with a progress bar.

    They are from its first four fifths as long as these have enough: none of the rest may be held
    out to fit damage on. kept_at: a file to save the state of the calibration in, and to resume
    from. ranks: (rank, number of processes that share the text).
    Raises PackerError, EvalError.
    """
    from packer.curvature.calibration import TextSource, calibrate
    from packer.curvature.ranks import Ranks
    from packer.curvature.windows import token_batches, window_count, window_starts
    from packer.eval.batches import Setting
    from packer.eval.forward import device_of
    from packer.eval.score import bytes_per_token
    from packer.evaluation import Subject, check_models
    from packer.planning.damage_trials import HELD_OUT
    from packer.progress import shown

    subject = Subject(checkpoint.source, "checkpoint", model, 0)
    check_models([subject], data, Setting(text.window), lambda text: say_notes([text]))
    stream, window = data.stream, text.window
    whole = (len(stream) - 1) // window
    end = (whole - whole // HELD_OUT) * window
    weights = sum(weight.numel() for weight in checkpoint.meta_tensors.values())
    batches = token_batches(stream, window, text.tokens, device_of(model), end, weights)
    starts = window_starts(window_count(stream, window, text.tokens), window, end)
    ratio = bytes_per_token(stream, data.counter, starts, window)
    source = TextSource(", ".join(text.data), ratio)
    resume = None
    if kept_at is not None:
        identity = calibration_identity(model, checkpoint, batches, text)
        resume = _resume_file(kept_at, identity, quiet=ranks[0] > 0)
    with shown("calibrating") as progress:
        return calibrate(
            model,
            batches,
            seconds=text.seconds,
            seed=text.seed,
            text=source,
            checkpoint=checkpoint,
            progress=progress if ranks[0] == 0 else None,
            resume_file=resume,
            ranks=Ranks(*ranks),
        )


def _resume_file(kept_at: str, identity: dict[str, str], quiet: bool) -> ResumeFile:
    from packer.curvature.resume import ResumeFile

    resume = ResumeFile(kept_at, identity)
    if resume.path.exists() and not quiet:
        say_notes([f"continuing the interrupted calibration in {kept_at}"])
    return resume


def calibration_identity(
    model: AnyModel, checkpoint: Checkpoint, batches: Sequence[Tensor], text: TextOptions
) -> dict[str, str]:
    """Hashes that tell one calibration from another, by the name of what they are of."""
    import hashlib

    from packer.checkpoint.fingerprint import contents_fingerprint
    from packer.eval.foreign_forward import named_module
    from packer.eval.forward import device_of

    module, tokens = named_module(model), hashlib.sha256()
    for batch in batches:
        tokens.update(f"{list(batch.shape)} ".encode())
        tokens.update(batch.numpy().data)
    built = f"{module!r} {getattr(module, 'config', None)!r}"
    return {
        "checkpoint": contents_fingerprint(checkpoint),
        "text, --tokens or --window": tokens.hexdigest(),
        "--seed": str(text.seed),
        "model": hashlib.sha256(built.encode()).hexdigest(),
        "--device": device_of(model).type,
    }


def evaluator_of(
    model: AnyModel,
    loaded: Checkpoint,
    curvature: CurvatureSet | None,
    data: Data,
    text: TextOptions,
    *,
    held_out: bool,
) -> DamageEvaluator:
    """A damage evaluator on a text. Raises CurvatureError, EvalError."""
    from packer.evaluation import check_window
    from packer.planning.damage_trials import damage_evaluator

    check_window(loaded.source, model, text.window)
    return damage_evaluator(
        model,
        loaded,
        curvature,
        data,
        ", ".join(text.data),
        tokens=text.tokens,
        window=text.window,
        held_out=held_out,
    )


def scores_of(
    subjects: Sequence[Subject],
    data: Data,
    setting: Setting,
    reference: int = 0,
    say: Callable[[Sequence[str]], None] = say_notes,
) -> tuple[Evaluated, ...]:
    """Scores of models on the same tokens, with a progress bar on rank 0. Raises ScoreError.

    say: called with what happens on the way.
    """
    from packer.evaluation import evaluate
    from packer.progress import shown

    started = time.monotonic()
    with shown("scoring") as tell:

        def progress(done: int, total: int) -> None:
            if setting.rank == 0:
                rate = done / (time.monotonic() - started)
                tell(f"{done:,} of {total:,} tokens, {rate:,.0f} a second", done, total)

        return evaluate(
            subjects, data, setting, reference, progress=progress, notice=lambda text: say([text])
        )
