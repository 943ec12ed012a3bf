"""The hull of one tensor and the sweep over all: a bound on every plan, and plans on the bound."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packer.budget.frontier import (
    Candidate,
    Curve,
    PlanningError,
    hull_steps,
    sweep,
    undominated,
)
from packer.budget.plan import plan_to_cap
from packer.budget.what_if import what_if


def lower_hull(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The lower convex hull of one tensor's candidates, the smallest first."""
    front = undominated(candidates)
    return (front[0], *(front[corner] for corner in hull_steps([front]).candidate))


def damage_at(curve: Curve, total_bytes: int) -> float:
    """The Lagrangian lower bound: no plan of at most ``total_bytes`` does less damage than this.

    Infinite below the smallest total, constant above the largest.
    """
    return float(np.interp(total_bytes, curve.total_bytes, curve.damage, left=np.inf))


def solution_at(curve: Curve, total_bytes: int) -> tuple[Candidate, ...]:
    """The largest plan on the curve of at most ``total_bytes``: one candidate a tensor, by name.

    Raises PlanningError below the smallest total.
    """
    steps = int(np.searchsorted(curve.total_bytes, total_bytes, side="right")) - 1
    if steps < 0:
        raise PlanningError(
            f"no plan has {total_bytes} bytes or fewer; the smallest has {curve.total_bytes[0]}"
        )
    chosen = {candidate.tensor: candidate for candidate in curve.start + curve.moves[:steps]}
    return tuple(chosen.values())


points = st.tuples(st.integers(0, 40), st.integers(0, 60))  # few values, so that ties happen
tensors = st.lists(st.lists(points, min_size=1, max_size=5), min_size=1, max_size=5)


def group(tensor: str, sizes_and_damages: Iterable[tuple[int, float]]) -> list[Candidate]:
    return [
        Candidate(tensor, f"c{i}", size, damage)
        for i, (size, damage) in enumerate(sizes_and_damages)
    ]


def model(tensors: Iterable[Iterable[tuple[int, float]]]) -> list[Candidate]:
    return [c for i, listed in enumerate(tensors) for c in group(f"t{i}", listed)]


def every_plan(tensors: Iterable[Iterable[tuple[int, float]]]) -> list[tuple[int, float]]:
    return [
        (sum(size for size, _ in plan), sum(damage for _, damage in plan))
        for plan in itertools.product(*tensors)
    ]


@given(st.lists(points, min_size=1, max_size=12))
def test_undominated_keeps_what_nothing_betters(listed: list[tuple[int, int]]) -> None:
    kept = [(c.size_bytes, c.damage) for c in undominated(group("t", listed))]
    expected = {
        (size, damage)
        for size, damage in listed
        if not any(s <= size and d <= damage and (s, d) != (size, damage) for s, d in listed)
    }
    assert kept == sorted(expected)


def test_equal_candidates_leave_the_first_choice_by_name() -> None:
    kept = undominated([Candidate("t", choice, 10, 1.0) for choice in ("b", "a", "c")])
    assert [c.choice for c in kept] == ["a"]


@given(st.lists(points, min_size=1, max_size=12))
def test_hull_is_convex_and_below_every_candidate(listed: list[tuple[int, int]]) -> None:
    candidates = group("t", listed)
    hull = lower_hull(candidates)
    sizes = np.array([c.size_bytes for c in hull])
    damages = np.array([c.damage for c in hull])
    slopes = np.diff(damages) / np.diff(sizes)
    assert (np.diff(sizes) > 0).all()
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()
    for c in candidates:
        assert np.interp(c.size_bytes, sizes, damages) <= c.damage + 1e-9
    assert set(hull) <= set(undominated(candidates))


@given(tensors, st.integers(0, 100))
def test_no_plan_is_below_the_curve(tensors: list[list[tuple[int, int]]], fixed: int) -> None:
    curve = sweep(model(tensors), fixed_bytes=fixed)
    for size, damage in every_plan(tensors):
        assert damage >= damage_at(curve, fixed + size) - 1e-9


@given(tensors, st.integers(0, 100))
def test_curve_is_convex_and_its_points_are_plans(
    tensors: list[list[tuple[int, int]]], fixed: int
) -> None:
    curve = sweep(model(tensors), fixed_bytes=fixed)
    assert (np.diff(curve.total_bytes) > 0).all()
    assert (np.diff(curve.damage) < 0).all()
    assert (np.diff(curve.price) <= 0).all()
    assert (curve.price > 0).all()
    for total_bytes, damage in zip(curve.total_bytes, curve.damage, strict=True):
        chosen = solution_at(curve, int(total_bytes))
        assert [c.tensor for c in chosen] == [f"t{i}" for i in range(len(tensors))]
        assert fixed + sum(c.size_bytes for c in chosen) == total_bytes
        assert sum(c.damage for c in chosen) == pytest.approx(damage)


@given(tensors)
def test_curve_runs_from_all_smallest_to_all_best(tensors: list[list[tuple[int, int]]]) -> None:
    curve = sweep(model(tensors))
    assert curve.total_bytes[0] == sum(min(size for size, _ in listed) for listed in tensors)
    assert curve.damage[-1] == sum(min(damage for _, damage in listed) for listed in tensors)


def test_between_points_the_solution_is_the_last_that_fits() -> None:
    curve = sweep(model([[(10, 8.0), (20, 0.0)], [(5, 3.0), (9, 1.0)]]))
    assert curve.total_bytes.tolist() == [15, 25, 29]
    assert curve.damage.tolist() == [11.0, 3.0, 1.0]
    assert curve.price.tolist() == [0.8, 0.5]
    assert damage_at(curve, 20) == 7.0
    assert damage_at(curve, 14) == math.inf
    assert damage_at(curve, 1000) == 1.0
    assert [c.choice for c in solution_at(curve, 28)] == ["c1", "c0"]
    with pytest.raises(PlanningError, match="14 bytes or fewer; the smallest has 15"):
        solution_at(curve, 14)


def test_small_damages_survive_beside_large_ones() -> None:
    curve = sweep(model([[(1, 1e9), (2, 0.0)], [(1, 3e-9), (1000, 1e-9)]]))
    assert curve.damage[1:].tolist() == pytest.approx([3e-9, 1e-9], rel=1e-12, abs=0)


def test_measured_damage_goes_before_weight_error() -> None:
    kept = undominated([Candidate("t", "a", 1, 0.5, 2.0), Candidate("t", "b", 2, 0.9, 1.0)])
    assert [c.damage for c in kept] == [2.0, 1.0]


def test_what_if_solves_the_moved_caps() -> None:
    candidates = model([[(10, 8.0), (20, 0.0)], [(5, 3.0), (9, 1.0)]])
    plan = plan_to_cap(candidates, cap_bytes=128, code_bytes=60, header_bytes=30, margin_bytes=10)
    answers = what_if(candidates, plan, offsets=(-200, -20, -9, 0, 1))
    assert (plan.total_bytes, plan.damage) == (115, 3.0)
    assert [a.offset_bytes for a in answers] == [-200, -20, -9, 0, 1]
    assert [a.cap_bytes for a in answers] == [-72, 108, 119, 128, 129]
    assert [a.total_bytes for a in answers] == [None, None, 109, 115, 119]
    assert [a.damage for a in answers] == [None, None, 9.0, 3.0, 1.0]
    assert [a.damage_change for a in answers] == [None, None, 6.0, 0.0, -2.0]
