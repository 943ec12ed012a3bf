"""Size and damage of a tensor, interpolated between the step sizes that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

PARTS_OF_AN_OCTAVE = 64  # of the grid on which the least cost is searched


@dataclass(frozen=True)
class StepPoint:
    """One measurement of a tensor whose codes are multiples of a step. damage: above 0."""

    step: float
    size_bytes: int
    damage: float


def best_step(points: Sequence[StepPoint], price: float) -> tuple[float, float]:
    """(step, cost) of least damage + price · bytes between the smallest and the largest step.

    price: a plan's Lagrange multiplier, damage per byte. Bytes and the logarithm of damage are
    interpolated in the logarithm of the step: at high rates half the step costs one bit per weight
    more and leaves a quarter of the damage. Cubic splines through all points, of lower degree for
    fewer than four.
    """
    by_step = sorted(points, key=lambda point: point.step)
    octaves = np.log2([point.step for point in by_step])
    if len(by_step) == 1:
        return by_step[0].step, by_step[0].damage + price * by_step[0].size_bytes
    degree = min(3, len(by_step) - 1)
    measured = np.array([[point.size_bytes, np.log(point.damage)] for point in by_step])
    count = int((octaves[-1] - octaves[0]) * PARTS_OF_AN_OCTAVE) + 2
    at = np.linspace(octaves[0], octaves[-1], count)
    sizes, damages = make_interp_spline(octaves, measured, k=degree)(at).T
    costs = np.exp(damages) + price * sizes
    best = int(costs.argmin())
    return float(2 ** at[best]), float(costs[best])
