"""What damage is predicted from: curvature, and an evaluator that measures it on the model."""

from __future__ import annotations

from dataclasses import dataclass

from packer.curvature.curvature_set import CurvatureSet
from packer.planning.damage_trials import DamageEvaluator


@dataclass(frozen=True, eq=False)
class Calibration:
    """curvature: predicts damage in bits per byte, and GPTQ rounds with it; None: weight errors
    take the place of damage. evaluator: the model and a held-out text, on which the damage of a
    few plans is measured so that predictions can be fitted to it; None: predictions are not fitted.
    """

    curvature: CurvatureSet | None = None
    evaluator: DamageEvaluator | None = None


NO_CALIBRATION = Calibration()
