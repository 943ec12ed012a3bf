"""Bits at a wanted damage, from points on either side of it: never beyond the points measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

BEYOND = 1.08  # a step this much past where the damage is expected, which is as its square
NEAR = 1.35  # a point whose damage is off by no more than this factor


class UnbracketedError(ValueError):
    """There are no points on both sides of the wanted damage."""


def next_multiplier(
    multipliers: Sequence[float], damages: Sequence[float], wanted: float
) -> float | None:
    """Where to measure next, so that points lie closely around `wanted`; None when they do.

    Damages grow about as the squares of multipliers.
    """
    off = [math.log(damage / wanted) for damage in damages]
    nearest = min(range(len(off)), key=lambda i: abs(off[i]))
    guess = multipliers[nearest] * math.exp(-off[nearest] / 2)
    if abs(off[nearest]) > math.log(NEAR):
        return guess  # too far off to say where the other side is
    if max(off) < 0:
        return guess * BEYOND
    if min(off) > 0:
        return guess / BEYOND
    return None


def around(damages: Sequence[float], wanted: float) -> tuple[int, int]:
    """Which damages lie nearest to the wanted one, below and above; twice the same if it is there.

    Raises UnbracketedError: all are more, or all are less.
    """
    low = [i for i, damage in enumerate(damages) if damage <= wanted]
    high = [i for i, damage in enumerate(damages) if damage >= wanted]
    if not low or not high:
        raise UnbracketedError(f"no points around {wanted}: {sorted(damages)}")
    return max(low, key=lambda i: damages[i]), min(high, key=lambda i: damages[i])


def between(damages: tuple[float, float], bits: tuple[float, float], wanted: float) -> float:
    """Bits at a damage on the line through the points on either side, in the log of damage."""
    if damages[0] == damages[1]:
        return bits[0]
    part = math.log(wanted / damages[0]) / math.log(damages[1] / damages[0])
    return bits[0] + part * (bits[1] - bits[0])
