"""`packer pack --tune`: weights tuned for a plan, kept if held-out text says so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packer.commands.models import refusals
from packer.commands.options.types import say_notes

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.commands.options.tuning import TuningOptions
    from packer.packing.pack import Packed
    from packer.planning.damage_trials import Calibration
    from packer.planning.plan import PackPlan


def pack_tuned(
    checkpoint: Checkpoint, plan: PackPlan, calibration: Calibration, options: TuningOptions
) -> Packed | None:
    """The artifact of tuned weights, or None if the damage on held-out text did not fall. Prints
    the steps, and the damage before and after.

    Raises TuningError: see `steps_within` and `tuned_checkpoint`. PlanError: other curvature.
    """
    from packer.errors import TuningError
    from packer.packing.pack import pack_to_cap
    from packer.planning.plan import check_curvature
    from packer.progress import shown
    from packer.tuning.tune import TuningText, for_plan, steps_within, tuned_checkpoint

    evaluator, curvature = calibration.evaluator, calibration.curvature
    if evaluator is None:
        raise TuningError(
            f"{checkpoint.source}: there is no model of it to tune; name one with --model"
        )
    check_curvature(plan, None if curvature is None else curvature.sha256)
    text = TuningText(*evaluator.before, evaluator.meter.setting.window)
    with refusals(), shown("tuning") as progress:
        steps = options.steps or steps_within(options.minutes or 0, evaluator.meter, text)
        other = tuned_checkpoint(checkpoint, plan, steps, evaluator, text, progress)
    with shown("packing") as progress:
        packed = pack_to_cap(other, for_plan(plan, other, steps), curvature, progress)
    with shown("scoring"):
        measurement = packed.plan.measurement
        before = evaluator.trial(measurement, plan.plan.chosen, "untuned").measured
        tuned_weights = replace(evaluator, checkpoint=other)
        after = tuned_weights.trial(measurement, packed.plan.plan.chosen, "tuned").measured
    better = after < before
    say_notes(
        [
            f"tuned in {steps:,} steps (--tune-steps {steps} repeats it): KL {before:.6f} -> "
            f"{after:.6f} bits per byte on {evaluator.tokens:,} tokens of {evaluator.source}"
            + ("" if better else "; it did not fall, so the file is not tuned")
        ]
    )
    return packed if better else None
