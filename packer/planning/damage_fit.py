"""One correction factor per role for predicted damage, fitted to a handful of measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Regularization towards the factor common to all roles, in squared logarithms: a role that causes a
# tenth of the damage of every plan says little about its own factor, and most of that is noise.
STIFFNESS = 0.1
ITERATIONS = 50  # of Gauss and Newton


@dataclass(frozen=True)
class DamageTrial:
    """One measurement on the model, with some weights quantized and the others unchanged.

    what: what was quantized, as text. predicted: role -> damage in bits per byte, without fitted
    factors. measured: KL in bits per byte.
    """

    what: str
    predicted: Mapping[str, float]
    measured: float

    @property
    def total(self) -> float:
        return math.fsum(self.predicted.values())

    def to_json(self) -> list[Any]:
        return [self.what, self.measured, dict(self.predicted)]

    @staticmethod
    def from_json(value: Sequence[Any]) -> DamageTrial:
        what, measured, predicted = value
        parts = {str(role): _positive(part) for role, part in predicted.items()}
        return DamageTrial(str(what), parts, _positive(measured))


@dataclass(frozen=True)
class DamageFit:
    """What predictions are multiplied by.

    factors: by role. common: for roles without a factor. error: rms of ln(measured / predicted)
    after the fit. source, tokens: the text that the trials were measured on.
    """

    factors: Mapping[str, float]
    common: float
    error: float
    source: str
    tokens: int
    trials: tuple[DamageTrial, ...]

    def factor(self, role: str) -> float:
        """The factor of a role; the common one if no trial quantized that role."""
        return self.factors.get(role, self.common)

    def predicted(self, trial: DamageTrial) -> float:
        """The damage of a trial in bits per byte, by these factors."""
        return math.fsum(self.factor(role) * part for role, part in trial.predicted.items())

    def describe(self) -> str:
        """One line: how many measurements, on which text, with what error."""
        return (
            f"{len(self.trials)} measurements on {self.tokens:,} tokens of {self.source}, "
            f"which it meets to {100 * math.expm1(self.error):.0f} %"
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "trials": [trial.to_json() for trial in self.trials]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DamageFit:
        """Raises ValueError, TypeError, KeyError: not what `to_json` gives."""
        return DamageFit(
            {str(role): _positive(factor) for role, factor in value["factors"].items()},
            _positive(value["common"]),
            float(value["error"]),
            str(value["source"]),
            int(value["tokens"]),
            tuple(DamageTrial.from_json(trial) for trial in value["trials"]),
        )


def fit_damage(trials: Sequence[DamageTrial], source: str, tokens: int) -> DamageFit:
    """Factors that bring predictions closest to what was measured, in logarithms.

    Gauss and Newton on ln(Σ_role factor · predicted) - ln(measured), with a quadratic penalty on
    the logarithm of every factor over the common one. Trials without measurable damage are left
    out. Raises ValueError: none is left.
    """
    usable = [trial for trial in trials if trial.total > 0 and trial.measured > 0]
    if not usable:
        raise ValueError("no trial has damage that can be measured")
    roles = sorted({role for trial in usable for role, part in trial.predicted.items() if part > 0})
    parts = np.array([[trial.predicted.get(role, 0.0) for role in roles] for trial in usable])
    measured = np.log([trial.measured for trial in usable])
    common = float(np.mean(measured - np.log(parts.sum(axis=1))))
    logs = np.full(len(roles), common)
    penalty = math.sqrt(STIFFNESS) * np.eye(len(roles))
    for _ in range(ITERATIONS):
        weighted = parts * np.exp(logs)
        totals = weighted.sum(axis=1)
        slopes = weighted / totals[:, None]
        residual = measured - np.log(totals)
        matrix = np.concatenate([slopes, penalty])
        target = np.concatenate([residual, penalty @ (common - logs)])
        logs = logs + np.linalg.lstsq(matrix, target, rcond=None)[0]
    residual = measured - np.log((parts * np.exp(logs)).sum(axis=1))
    error = float(np.sqrt(np.mean(np.square(residual))))
    factors = {role: math.exp(value) for role, value in zip(roles, logs, strict=True)}
    return DamageFit(factors, math.exp(common), error, source, tokens, tuple(usable))


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no damage or factor")
    return number
