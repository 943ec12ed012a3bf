"""One factor per role, so that predicted damage comes true: fitted to a handful of measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A factor strays from the common one of all roles only as far as measurements pull it: a role that
# is a tenth of every plan tells little, and what it tells is mostly noise.
STIFFNESS = 0.1
ROUNDS = 50


@dataclass(frozen=True)
class Trial:
    """One true measurement: some weights changed, the others as they are.

    what: in words. predicted: role -> damage in bits per byte before any factor. measured: KL in
    bits per byte.
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
    def from_json(value: Sequence[Any]) -> Trial:
        what, measured, predicted = value
        parts = {str(role): _positive(part) for role, part in predicted.items()}
        return Trial(str(what), parts, _positive(measured))


@dataclass(frozen=True)
class DamageFit:
    """What predictions are multiplied by. error: rms of ln(measured / predicted) after the fit.

    source, tokens: what the trials were measured on.
    """

    factors: Mapping[str, float]
    common: float
    error: float
    source: str
    tokens: int
    trials: tuple[Trial, ...]

    def factor(self, role: str) -> float:
        """Of a role; of one that no trial changed the common factor."""
        return self.factors.get(role, self.common)

    def predicted(self, trial: Trial) -> float:
        """The damage of a trial in bits per byte, by these factors."""
        return math.fsum(self.factor(role) * part for role, part in trial.predicted.items())

    def describe(self) -> str:
        """One line: on what, from how many, how good."""
        return (
            f"{len(self.trials)} measurements on {self.tokens:,} tokens of {self.source}, "
            f"which it meets to {100 * math.expm1(self.error):.0f} %"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "factors": dict(self.factors),
            "common": self.common,
            "error": self.error,
            "source": self.source,
            "tokens": self.tokens,
            "trials": [trial.to_json() for trial in self.trials],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DamageFit:
        """Raises ValueError, TypeError, KeyError: not what `to_json` gives."""
        return DamageFit(
            {str(role): _positive(factor) for role, factor in value["factors"].items()},
            _positive(value["common"]),
            float(value["error"]),
            str(value["source"]),
            int(value["tokens"]),
            tuple(Trial.from_json(trial) for trial in value["trials"]),
        )


def fit_damage(trials: Sequence[Trial], source: str, tokens: int) -> DamageFit:
    """Factors that bring the trials' predictions closest to what was measured, in logarithms.

    Gauss and Newton on ln(Σ_role factor · predicted) - ln(measured), every factor held to the
    common one by a spring. Trials that change nothing measurable are left out.
    Raises ValueError: none is left.
    """
    usable = [trial for trial in trials if trial.total > 0 and trial.measured > 0]
    if not usable:
        raise ValueError("no trial changed anything that can be measured")
    roles = sorted({role for trial in usable for role, part in trial.predicted.items() if part > 0})
    parts = np.array([[trial.predicted.get(role, 0.0) for role in roles] for trial in usable])
    measured = np.log([trial.measured for trial in usable])
    common = float(np.mean(measured - np.log(parts.sum(axis=1))))
    logs = np.full(len(roles), common)
    spring = math.sqrt(STIFFNESS) * np.eye(len(roles))
    for _ in range(ROUNDS):
        weighted = parts * np.exp(logs)
        totals = weighted.sum(axis=1)
        slopes = weighted / totals[:, None]
        missing = measured - np.log(totals)
        matrix = np.concatenate([slopes, spring])
        wanted = np.concatenate([missing, spring @ (common - logs)])
        logs = logs + np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    left = measured - np.log((parts * np.exp(logs)).sum(axis=1))
    error = float(np.sqrt(np.mean(np.square(left))))
    factors = {role: math.exp(value) for role, value in zip(roles, logs, strict=True)}
    return DamageFit(factors, math.exp(common), error, source, tokens, tuple(usable))


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no damage or factor")
    return number
