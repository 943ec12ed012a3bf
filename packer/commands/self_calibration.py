"""Calibration on text by the model itself, for commands that were given no text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packer.commands.calibrating import calibration_of
from packer.commands.models import has_configuration, model_of, refusals, running_foreign
from packer.commands.options.types import say_notes
from packer.commands.self_generated import generate_for_trials
from packer.errors import PackerError, reason

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.commands.options.curvature import CurvatureOptions
    from packer.commands.options.text import TextOptions
    from packer.planning.damage_trials import Calibration

LONGEST = 600.0  # seconds: nobody should wait longer for what was not asked for


def self_calibrated(
    checkpoint: Checkpoint, options: CurvatureOptions, text: TextOptions
) -> Calibration:
    """A calibration on text by the checkpoint's model. An empty one where no configuration of it is
    there, and with a note where it cannot be built or would take too long.

    text: with the tokenizer, if there is one. Raises PackerError: `options` names a class for the
    model, and that fails.
    """
    from packer.planning.damage_trials import NO_CALIBRATION

    named = options.built.model
    try:
        with refusals(), running_foreign(named):
            if has_configuration(checkpoint, options.built):
                return _calibrated(checkpoint, options, text)
            return NO_CALIBRATION
    except Exception as error:  # a model of a library may raise anything
        if named is not None:
            raise PackerError(f"{error}; --no-calibration plans without the model") from error
        why = str(error) if isinstance(error, PackerError) else reason(error)
    say_notes([_not_calibrated(checkpoint, why)])
    return NO_CALIBRATION


def _calibrated(
    checkpoint: Checkpoint, options: CurvatureOptions, text: TextOptions
) -> Calibration:
    """Nothing, and a note, where it would take longer than `LONGEST`. Raises PackerError."""
    from packer.curvature.self_generated import TEMPERATURE, estimated_seconds, size_for
    from packer.planning.damage_trials import NO_CALIBRATION

    model = model_of(checkpoint, options.built)
    size = size_for(model)
    seconds = estimated_seconds(model, size)
    if seconds > LONGEST:
        say_notes(
            [
                _not_calibrated(
                    checkpoint,
                    f"it would take about {seconds / 60:.0f} minutes; "
                    f"for that, run packer calibrate with --self-generate {size.tokens}, then add "
                    "--curvature curvature.safetensors",
                )
            ]
        )
        return NO_CALIBRATION
    say_notes(
        [
            f"calibrating on {size.tokens:,} tokens that the model writes itself, about "
            f"{seconds:.0f} s; --calibration TEXT is better, --no-calibration faster"
        ]
    )
    own = replace(text, self_generate=size.tokens, window=size.window)
    data, text, spent = generate_for_trials(model, own, TEMPERATURE)
    return calibration_of(model, checkpoint, data, text, spent)


def _not_calibrated(checkpoint: Checkpoint, why: str) -> str:
    return f"{checkpoint.source}: planned from its weights alone: {why}"
