"""What a plan's damage is predicted from: curvature, and true measurements to fit it to."""

from __future__ import annotations

from dataclasses import dataclass

from packer.curvature.curvature_set import CurvatureSet
from packer.planning.damage_trials import DamageEvaluator


@dataclass(frozen=True, eq=False)
class Calibration:
    """curvature: predicts damage in bits per byte and lets GPTQ round; None: weight errors stand
    for damage. bench: the model and a held-out text, on which a few plans are measured so that
    predictions can be fitted to the truth; None: predictions stay as they are.
    """

    curvature: CurvatureSet | None = None
    bench: DamageEvaluator | None = None


NO_CALIBRATION = Calibration()
