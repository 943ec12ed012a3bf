"""The loss of a model after training, from a ladder of short runs.

L(N, D) = E + A · N^-α + B · D^-β for N weights and D tokens, the law of Hoffmann and others
(arXiv:2203.15556). E, A and B are fitted by least squares, none of them negative, for each pair of
exponents on a grid; the pair with the least residual is taken. The uncertainty is the jackknife's:
how much a prediction changes as each run is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from packer.errors import PackerError

EXPONENTS = tuple(round(0.05 * i, 2) for i in range(3, 15))  # 0.15 to 0.7
FEWEST = 5  # runs: four that are left when one is left out, for three coefficients


@dataclass(frozen=True)
class Rung:
    """A short run: its model's weights, the tokens it was trained on, and its held-out loss."""

    weights: int
    tokens: int
    bits_per_byte: float


@dataclass(frozen=True)
class LossLaw:
    """floor, by_weights, by_tokens: E, A and B. powers: α and β."""

    floor: float
    by_weights: float
    by_tokens: float
    powers: tuple[float, float]

    def at(self, weights: int, tokens: float) -> float:
        """Bits per byte."""
        alpha, beta = self.powers
        size, data = float(weights) ** -alpha, float(tokens) ** -beta
        return float(self.floor + self.by_weights * size + self.by_tokens * data)


@dataclass(frozen=True)
class LossFit:
    """law: of all runs. without: of all but one, for each."""

    law: LossLaw
    without: tuple[LossLaw, ...]

    def at(self, weights: int, tokens: float) -> tuple[float, float]:
        """(bits per byte, their standard error)."""
        others = np.array([law.at(weights, tokens) for law in self.without])
        variance = (len(others) - 1) * float(others.var())
        return self.law.at(weights, tokens), math.sqrt(variance)


def fit_loss(rungs: Sequence[Rung]) -> LossFit:
    """The law of a ladder. Raises PackerError: fewer than FEWEST runs."""
    if len(rungs) < FEWEST:
        raise PackerError(
            f"a loss law is fitted to at least {FEWEST} short runs, and there are {len(rungs)}"
        )
    left_out = [[*rungs[:i], *rungs[i + 1 :]] for i in range(len(rungs))]
    return LossFit(_law(rungs), tuple(_law(some) for some in left_out))


def _law(rungs: Sequence[Rung]) -> LossLaw:
    weights = np.array([float(rung.weights) for rung in rungs])
    tokens = np.array([float(rung.tokens) for rung in rungs])
    losses = np.array([rung.bits_per_byte for rung in rungs])
    best, law = math.inf, None
    for powers in itertools.product(EXPONENTS, EXPONENTS):
        columns = [weights ** -powers[0], tokens ** -powers[1]]
        scales = [float(column.mean()) for column in columns]  # a well-conditioned problem
        scaled = [column / scale for column, scale in zip(columns, scales, strict=True)]
        found, residual = nnls(np.stack([np.ones(len(rungs)), *scaled], 1), losses)
        if residual < best:
            best = float(residual)
            by_weights, by_tokens = (float(c / s) for c, s in zip(found[1:], scales, strict=True))
            law = LossLaw(float(found[0]), by_weights, by_tokens, powers)
    assert law is not None
    return law
