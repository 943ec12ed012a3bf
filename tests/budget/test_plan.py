"""The plan equals exhaustive search on small cases and a general solver on larger ones."""

import itertools
import math
import random
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packer.budget.frontier import sweep
from packer.budget.plan import Candidate, InfeasibleCap, Plan, PlanningError, plan_to_cap
from scipy.optimize import Bounds, LinearConstraint, milp


@st.composite
def models(draw: st.DrawFn) -> list[Candidate]:
    """Up to 5 tensors of up to 5 candidates, from few values so that ties happen."""
    damages = draw(st.sampled_from([st.integers(0, 12), st.floats(0, 1e3, allow_subnormal=False)]))
    point = st.tuples(st.integers(0, 30), damages)
    tensors = draw(st.lists(st.lists(point, min_size=1, max_size=5), min_size=1, max_size=5))
    return [
        Candidate(f"t{i}", f"c{j}", size, damage)
        for i, listed in enumerate(tensors)
        for j, (size, damage) in enumerate(listed)
    ]


def groups_of(candidates: list[Candidate]) -> list[list[Candidate]]:
    names = sorted({c.tensor for c in candidates})
    return [[c for c in candidates if c.tensor == name] for name in names]


def smallest_total(candidates: list[Candidate]) -> int:
    return sum(min(c.size_bytes for c in group) for group in groups_of(candidates))


def exhaustive(candidates: list[Candidate], room: int) -> float:
    """The least damage of any combination within ``room`` bytes."""
    return min(
        math.fsum(c.damage for c in combination)
        for combination in itertools.product(*groups_of(candidates))
        if sum(c.size_bytes for c in combination) <= room
    )


def realistic(tensors: int, choices: int, seed: int) -> list[Candidate]:
    """Sizes that grow with the bits and damages that fall as 4^-bits, both with noise."""
    rng = np.random.default_rng(seed)
    candidates = []
    for tensor in range(tensors):
        weights, sensitivity = np.exp(rng.normal(12, 1)), np.exp(rng.normal(0, 1))
        for choice, bits in enumerate(rng.uniform(2, 8.5, choices)):
            size = int(weights * bits / 8 * np.exp(rng.normal(0, 0.02))) + 40
            damage = sensitivity * weights * 4.0**-bits * np.exp(rng.normal(0, 0.25)) * 1e-7
            candidates.append(Candidate(f"t{tensor:03}", f"c{choice}", size, 0.0, float(damage)))
    return candidates


def middle_cap(candidates: list[Candidate], fraction: float) -> int:
    curve = sweep(candidates)
    return int(curve.total_bytes[0] * (1 - fraction) + curve.total_bytes[-1] * fraction)


@given(models(), st.integers(0, 160))
def test_equals_exhaustive_search(candidates: list[Candidate], room: int) -> None:
    assume(room >= smallest_total(candidates))
    plan = plan_to_cap(candidates, cap_bytes=room + 6, code_bytes=1, header_bytes=2, margin_bytes=3)
    assert plan.damage == pytest.approx(exhaustive(candidates, room), rel=1e-12, abs=0)
    assert plan.gap == 0.0
    assert plan.total_bytes + plan.margin_bytes <= plan.cap_bytes


@given(models(), st.integers(0, 160), st.integers(1, 4))
def test_gap_is_honest_when_the_search_is_cut_short(
    candidates: list[Candidate], room: int, limit: int
) -> None:
    assume(room >= max(smallest_total(candidates), 1))
    plan = plan_to_cap(candidates, cap_bytes=room, max_partial_plans=limit)
    assert plan.total_bytes <= room
    assert plan.damage * (1 - plan.gap) <= exhaustive(candidates, room) * (1 + 1e-12)


def test_a_search_cut_short_says_so() -> None:
    candidates = realistic(40, 20, seed=1)
    cap = middle_cap(candidates, 0.4)
    exact = plan_to_cap(candidates, cap_bytes=cap)
    hasty = plan_to_cap(candidates, cap_bytes=cap, max_partial_plans=1)
    assert exact.gap == 0.0 < hasty.gap < 0.1
    assert hasty.damage * (1 - hasty.gap) <= exact.damage < hasty.damage


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.8])
def test_agrees_with_integer_programming(fraction: float) -> None:
    candidates = realistic(30, 12, seed=3)
    cap = middle_cap(candidates, fraction)
    sizes = np.array([c.size_bytes for c in candidates]) / cap
    damages = np.array([c.damage for c in candidates])
    names = sorted({c.tensor for c in candidates})
    one_each = np.array([[c.tensor == name for c in candidates] for name in names], dtype=float)
    solved = milp(
        damages / damages.min(),
        integrality=np.ones(len(candidates)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None], 0, 1)],
        options={"mip_rel_gap": 0},
    )
    plan = plan_to_cap(candidates, cap_bytes=cap)
    assert plan.total_bytes <= cap
    assert plan.damage == pytest.approx(solved.fun * damages.min(), rel=1e-7)


@given(models(), st.integers(1, 150), st.integers(0, 20))
def test_more_room_never_does_more_damage(candidates: list[Candidate], cap: int, more: int) -> None:
    assume(cap >= smallest_total(candidates))
    tight = plan_to_cap(candidates, cap_bytes=cap)
    wide = plan_to_cap(candidates, cap_bytes=cap + more)
    assert wide.damage <= tight.damage * (1 + 1e-12)


@given(models(), st.integers(1, 150))
def test_not_below_the_lagrangian_bound(candidates: list[Candidate], cap: int) -> None:
    assume(cap >= smallest_total(candidates))
    plan = plan_to_cap(candidates, cap_bytes=cap)
    curve = sweep(candidates)
    bound = np.interp(cap, curve.total_bytes, curve.damage, left=np.inf)
    assert plan.damage >= bound * (1 - 1e-12)


@given(models(), st.integers(1, 150), st.randoms(use_true_random=False))
def test_order_of_candidates_does_not_matter(
    candidates: list[Candidate], cap: int, order: random.Random
) -> None:
    assume(cap >= smallest_total(candidates))
    shuffled = order.sample(candidates, len(candidates))
    assert plan_to_cap(shuffled, cap_bytes=cap) == plan_to_cap(candidates, cap_bytes=cap)


@given(models())
def test_everything_fits_at_its_best(candidates: list[Candidate]) -> None:
    plan = plan_to_cap(candidates, cap_bytes=1000)
    for chosen, group in zip(plan.chosen, groups_of(candidates), strict=True):
        least = min(c.damage for c in group)
        assert chosen.damage == least
        assert chosen.size_bytes == min(c.size_bytes for c in group if c.damage == least)
    assert (plan.price, plan.gap) == (0.0, 0.0)


def two_tensors() -> list[Candidate]:
    return [
        Candidate("a", "int4", 400, 9.0),
        Candidate("a", "int6", 600, 1.0),
        Candidate("b", "int4", 300, 2.0),
        Candidate("b", "int6", 500, 1.0),
    ]


def test_the_account_adds_up() -> None:
    plan = plan_to_cap(
        two_tensors(), cap_bytes=1100, code_bytes=50, header_bytes=20, margin_bytes=7
    )
    assert plan.choices == {"a": "int6", "b": "int4"}
    assert plan.artifact_bytes == 20 + 600 + 300
    assert plan.total_bytes == 50 + plan.artifact_bytes
    assert plan.unused_bytes == 1100 - plan.total_bytes
    assert plan.damage == 3.0
    assert plan.damage_kind == "weight_error"
    assert plan.price == 1.0 / 200  # what b gains by going on to int6


def test_margin_is_left_free_to_the_byte() -> None:
    fits = plan_to_cap(two_tensors(), cap_bytes=1110, margin_bytes=10)
    short = plan_to_cap(two_tensors(), cap_bytes=1110, margin_bytes=11)
    assert (fits.unused_bytes, fits.damage) == (10, 2.0)
    assert (short.unused_bytes, short.damage) == (210, 3.0)


def test_bits_per_byte_are_planned_where_every_candidate_has_them() -> None:
    measured = [replace(c, damage_bpb=1.0 / c.size_bytes) for c in two_tensors()]
    plan = plan_to_cap(measured, cap_bytes=901)
    assert plan.damage_kind == "damage_bpb"
    assert plan.choices == {"a": "int4", "b": "int6"}  # by weight error it would be the other way
    assert plan.damage == pytest.approx(1 / 400 + 1 / 500)


def test_infeasible_cap_names_the_numbers_and_the_tensors() -> None:
    sizes = {"head": 900, "embed": 5000, "q": 300, "k": 200, "v": 200, "gate": 3}
    candidates = [Candidate(name, "int2", size, 1.0) for name, size in sizes.items()]
    candidates += [Candidate(name, "int8", size * 4, 0.0) for name, size in sizes.items()]
    with pytest.raises(InfeasibleCap) as caught:
        plan_to_cap(candidates, cap_bytes=6000, code_bytes=100, header_bytes=20, margin_bytes=3)
    error = caught.value
    assert (error.cap_bytes, error.smallest_bytes, error.shortfall) == (6000, 6726, 726)
    assert [c.tensor for c in error.largest] == ["embed", "head", "q", "k", "v"]
    assert {c.choice for c in error.largest} == {"int2"}
    for words in ("6,000", "6,726", "726 too many", "embed 5,000 (int2)"):
        assert words in str(error)
    fits = plan_to_cap(candidates, cap_bytes=6726, code_bytes=100, header_bytes=20, margin_bytes=3)
    assert fits.unused_bytes == fits.margin_bytes == 3


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (Candidate("a", "int6", 1, 1.0), "a: the choice int6 is given twice, with 600 and 1"),
        (two_tensors()[3], "b: the choice int6 is given twice, with 500 and 500"),
        (Candidate("c", "int4", -1, 1.0), "c under int4: size_bytes is -1"),
        (
            replace(two_tensors()[0], tensor="c", size_bytes=cast(int, 1.5)),
            "c under int4: size_bytes is 1.5",
        ),
        (Candidate("c", "int4", 1, -1.0), "c under int4: weight_error is -1.0"),
        (Candidate("c", "int4", 1, math.nan), "c under int4: weight_error is nan"),
        (Candidate("c", "int4", 1, math.inf), "c under int4: weight_error is inf"),
        (Candidate("c", "int4", 1, 1.0, math.nan), "c under int4: damage_bpb is nan"),
        (Candidate("c", "int4", 1, 1.0, 0.1), "has no damage_bpb but c under int4 has"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(extra: Candidate, words: str) -> None:
    with pytest.raises(PlanningError, match=words):
        plan_to_cap([*two_tensors(), extra], cap_bytes=10_000)


def test_no_candidates_are_refused() -> None:
    with pytest.raises(PlanningError, match="no candidates"):
        plan_to_cap([], cap_bytes=1)


def test_byte_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(PlanningError, match="the cap is 0 bytes"):
        plan_to_cap(two_tensors(), cap_bytes=0)
    with pytest.raises(PlanningError, match="the margin is -1 bytes"):
        plan_to_cap(two_tensors(), cap_bytes=10_000, margin_bytes=-1)


def test_tensors_of_no_bytes_and_no_damage() -> None:
    plan = plan_to_cap([Candidate("empty", "fp32", 0, 0.0)], cap_bytes=1)
    assert isinstance(plan, Plan)
    assert (plan.total_bytes, plan.damage, plan.gap) == (0, 0.0, 0.0)
