"""Between measured steps: the best one under a price."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.budget.step_curve import StepPoint, best_step

WEIGHTS = 65_536


def ideal(step: float) -> StepPoint:
    """A bit a weight an octave, a quarter of the damage: what curves are at high rates."""
    return StepPoint(step, round(WEIGHTS / 8 * (4 - math.log2(step))), 1e-3 * step**2)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 1.5), st.integers(3, 9))
def test_the_best_step_is_found_between_those_measured(wanted, count):
    # d damage / d octave = 2 ln 2 damage = price · bytes an octave
    price = 2 * math.log(2) * 1e-3 * wanted**2 / (WEIGHTS / 8)
    points = [ideal(0.05 * 2 ** (6 * i / (count - 1))) for i in range(count)]
    step, cost = best_step(points, price)
    assert step == pytest.approx(wanted, rel=0.02)
    exact = ideal(wanted)
    assert cost == pytest.approx(exact.damage + price * exact.size_bytes, rel=1e-3)


def test_no_step_beyond_those_measured_is_named():
    points = [ideal(0.5), ideal(0.25)]
    assert best_step(points, 0.0)[0] == pytest.approx(0.25)
    assert best_step(points, 1.0)[0] == pytest.approx(0.5)


def test_one_point_is_its_own_curve():
    point = ideal(0.5)
    assert best_step([point], 1e-9) == (0.5, point.damage + 1e-9 * point.size_bytes)
