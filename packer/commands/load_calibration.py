"""The curvature that a command measures with, and the evaluator its predictions are fitted to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packer.commands.calibrating import curvature_of, evaluator_of
from packer.commands.models import model_of, refusals, running_foreign
from packer.commands.options.curvature import CurvatureOptions, beside
from packer.commands.options.types import say_notes
from packer.commands.own_tokenizer import with_own_tokenizer
from packer.commands.self_generated import generate_for_trials

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.planning.calibrated import Calibration


def load_calibration(checkpoint: Checkpoint, options: CurvatureOptions) -> Calibration:
    """Read or make the curvature that the options name; with a text, also a damage evaluator.

    Raises PackerError: see `read_curvature`, `calibrate` and `open_data`.
    """
    from packer.planning.calibrated import Calibration
    from packer.planning.damage_trials import held_out_part

    curvature = options.read(checkpoint)
    text = with_own_tokenizer(options.text, [checkpoint.source])
    if not text.given:
        return Calibration(curvature)
    with refusals(), running_foreign(options.built.model):
        spent, data = 0.0, None if text.self_generate else text.open()
        model = model_of(checkpoint, options.built)
        if data is None:
            data, text, spent = generate_for_trials(model, text)
        if curvature is None:
            first, _ = held_out_part(len(data.stream), text.tokens, text.window)
            seen = replace(text, tokens=max(min(text.tokens, first), text.window))
            curvature = curvature_of(model, checkpoint, data, seen)
            curvature = replace(curvature, seconds=curvature.seconds + spent)
            say_notes([f"calibrated on {curvature.describe()}", *curvature.warnings])
        evaluator = evaluator_of(model, checkpoint, curvature, data, text, held_out=True)
    return Calibration(curvature, evaluator)


def kept_curvature(
    calibration: Calibration, options: CurvatureOptions, output: str | None
) -> str | None:
    """The file with the curvature that was used, written if it was made here.

    None without curvature, or where the command writes no file. Raises OutputError.
    """
    from packer.curvature.file import write_curvature

    if options.file is not None or calibration.curvature is None:
        return options.file
    path = options.out or (None if output is None else beside(output))
    if path is not None:
        write_curvature(path, calibration.curvature)
    return path
