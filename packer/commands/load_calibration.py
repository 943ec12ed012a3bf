"""The curvature that a command measures with, and the evaluator its predictions are fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packer.commands.calibrating import calibration_of
from packer.commands.models import check_configuration, model_of, refusals, running_foreign
from packer.commands.options.curvature import CurvatureOptions, beside
from packer.commands.options.types import say_notes
from packer.commands.self_calibration import self_calibrated
from packer.commands.self_generated import generate_for_trials

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.planning.damage_trials import Calibration


def load_calibration(checkpoint: Checkpoint, options: CurvatureOptions) -> Calibration:
    """Read or make the curvature that the options name; with a text, also a damage evaluator.

    Without either, the model writes the text, if it can be built and nothing forbids it. Without
    a text, shapes are first compared with a configuration next to the checkpoint.
    Raises PackerError: see `read_curvature`, `calibrate`, `open_data` and `check_configuration`.
    """
    from packer.planning.damage_trials import Calibration

    curvature = options.read(checkpoint)
    text = options.text.with_tokenizer_beside([checkpoint.source])
    unchecked = None if text.given else check_configuration(checkpoint, options.built)
    if options.may_self_generate:
        return self_calibrated(checkpoint, options, text)
    if not text.given:
        say_notes([unchecked] if unchecked else [])
        return Calibration(curvature)
    with refusals(), running_foreign(options.built.model):
        spent, data = 0.0, None if text.self_generate else text.open()
        model = model_of(checkpoint, options.built)
        if data is None:
            data, text, spent = generate_for_trials(model, text)
        return calibration_of(model, checkpoint, data, text, spent, curvature)


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
