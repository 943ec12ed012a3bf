"""The trade between bytes and damage: one tensor's hull, and the sweep over all tensors.

The sweep is the Lagrangian relaxation of the multiple-choice knapsack (Sinha and Zoltners, "The
Multiple-Choice Knapsack Problem", Operations Research 27, 1979): walking the hull steps of all
tensors in the order of damage saved per byte gives every plan that is best for some Lagrange
multiplier (the price of a byte). Between those plans the straight line is a lower bound that no
plan can beat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class PlanningError(ValueError):
    """Candidates or byte counts that no plan can be made from; the message names the tensor."""


@dataclass(frozen=True)
class Candidate:
    """One tensor under one choice.

    ``choice`` is an opaque label. ``size_bytes`` is everything in the artifact that
    depends on the choice, after entropy coding. ``weight_error`` is a role-weighted squared error;
    ``damage_bpb`` the predicted KL to the unquantized model in bits per byte, None without data.
    """

    tensor: str
    choice: str
    size_bytes: int
    weight_error: float
    damage_bpb: float | None = None

    @property
    def damage(self) -> float:
        """The term of the plan's sum: ``damage_bpb`` where it is known, else ``weight_error``."""
        return self.weight_error if self.damage_bpb is None else self.damage_bpb


@dataclass(frozen=True, eq=False)
class Curve:
    """The least damage at every size, as far as the hulls of the tensors reach.

    ``total_bytes`` int64 [points], increasing. ``damage`` float64 [points], decreasing. ``price``
    float64 [points - 1], damage saved per byte between one point and the next, never increasing.
    ``start`` is the smallest candidate of every tensor, by name; ``moves`` [points - 1] is the
    candidate that each step adopts in place of its tensor's candidate so far.
    """

    total_bytes: Ints
    damage: Floats
    price: Floats
    start: tuple[Candidate, ...]
    moves: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class HullSteps:
    """The hull steps of several tensors, from the one that saves most damage per byte downwards.

    Arrays [steps]: ``tensor`` (int64) moves to its undominated candidate ``candidate`` (int64), at
    a cost of ``added_bytes`` (int64) and a gain of ``saved_damage`` (float64).
    """

    tensor: Ints
    candidate: Ints
    added_bytes: Ints
    saved_damage: Floats

    def among(self, chosen: npt.NDArray[np.bool_]) -> HullSteps:
        """The steps marked in ``chosen`` (bool, one a step), order kept."""
        return HullSteps(
            self.tensor[chosen],
            self.candidate[chosen],
            self.added_bytes[chosen],
            self.saved_damage[chosen],
        )

    def trace(self, start_bytes: int, end_damage: float) -> tuple[Ints, Floats]:
        """Bytes and damage before the first step and after each one, both [steps + 1]."""
        total_bytes = start_bytes + np.concatenate([[0], np.cumsum(self.added_bytes)])
        # Summed from the small end: rounding errors of the large savings must not swamp the small.
        saved_later = np.concatenate([[0.0], np.cumsum(self.saved_damage[::-1])])[::-1]
        return total_bytes.astype(np.int64), end_damage + saved_later


def by_tensor(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of each tensor, tensors by name.

    Raises PlanningError for no candidates, a choice given twice, a size or damage that is negative
    or no number, and for candidates of which some have ``damage_bpb`` and others do not.
    """
    groups: dict[str, list[Candidate]] = {}
    seen: dict[tuple[str, str], Candidate] = {}
    for candidate in candidates:
        _check(candidate)
        key = candidate.tensor, candidate.choice
        if key in seen:
            raise PlanningError(
                f"{candidate.tensor}: the choice {candidate.choice} is given twice, with "
                f"{seen[key].size_bytes} and {candidate.size_bytes} bytes; keep one of the two"
            )
        seen[key] = candidate
        groups.setdefault(candidate.tensor, []).append(candidate)
    if not groups:
        raise PlanningError("there are no candidates to plan with; measure the tensors first")
    _check_one_kind(seen.values())
    return dict(sorted(groups.items()))


def undominated(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of one tensor that no other equals or betters in both size and damage.

    Sizes increase and damages decrease along the result. Of candidates equal in both, the one
    whose choice comes first as text stays.
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.size_bytes, c.damage, c.choice)):
        if not kept or candidate.damage < kept[-1].damage:
            kept.append(candidate)
    return tuple(kept)


def hull_steps(fronts: Sequence[Sequence[Candidate]]) -> HullSteps:
    """All hull steps of tensors given by their undominated candidates; ties in the given order."""
    steps: list[tuple[float, int, int, int, float]] = []
    for tensor, front in enumerate(fronts):
        corners = _hull(front)
        for here, there in itertools.pairwise(corners):
            low, high = front[here], front[there]
            added, saved = high.size_bytes - low.size_bytes, low.damage - high.damage
            steps.append((-saved / added, tensor, there, added, saved))
    steps.sort()
    return HullSteps(
        np.array([step[1] for step in steps], dtype=np.int64),
        np.array([step[2] for step in steps], dtype=np.int64),
        np.array([step[3] for step in steps], dtype=np.int64),
        np.array([step[4] for step in steps], dtype=np.float64),
    )


def sweep(candidates: Iterable[Candidate], *, fixed_bytes: int = 0) -> Curve:
    """The whole size/damage curve, from every tensor at its smallest to every tensor at its best.

    >>> sizes = {"int2": (10, 8.0), "int4": (20, 2.0), "fp16": (80, 0.0)}
    >>> curve = sweep([Candidate("w", choice, *measured) for choice, measured in sizes.items()])
    >>> curve.total_bytes.tolist(), curve.damage.tolist()
    ([10, 20, 80], [8.0, 2.0, 0.0])

    ``fixed_bytes`` (code, header) is added to every size. Raises PlanningError as by_tensor does.
    """
    fronts = [undominated(group) for group in by_tensor(candidates).values()]
    steps = hull_steps(fronts)
    start = tuple(front[0] for front in fronts)
    total_bytes, damage = steps.trace(
        fixed_bytes + sum(candidate.size_bytes for candidate in start),
        sum(front[-1].damage for front in fronts),
    )
    moves = tuple(fronts[t][c] for t, c in zip(steps.tensor, steps.candidate, strict=True))
    return Curve(total_bytes, damage, steps.saved_damage / steps.added_bytes, start, moves)


def _hull(front: Sequence[Candidate]) -> list[int]:
    """Indices of the corners of the lower convex hull among undominated candidates."""
    sizes = [candidate.size_bytes for candidate in front]
    damages = [candidate.damage for candidate in front]
    corners = [0]
    prices = [math.inf]  # damage saved per byte on the way to each corner
    for i in range(1, len(front)):
        while True:
            last = corners[-1]
            price = (damages[last] - damages[i]) / (sizes[i] - sizes[last])
            if price < prices[-1]:
                break
            corners.pop()
            prices.pop()
        corners.append(i)
        prices.append(price)
    return corners


def _check(candidate: Candidate) -> None:
    where = f"{candidate.tensor} under {candidate.choice}"
    if not isinstance(candidate.size_bytes, (int, np.integer)) or candidate.size_bytes < 0:
        raise PlanningError(
            f"{where}: size_bytes is {candidate.size_bytes}; it must be a whole number, 0 or more"
        )
    damages = {"weight_error": candidate.weight_error}
    if candidate.damage_bpb is not None:
        damages["damage_bpb"] = candidate.damage_bpb
    for kind, value in damages.items():
        if not (math.isfinite(value) and value >= 0):
            raise PlanningError(f"{where}: {kind} is {value}; it must be finite and 0 or more")


def _check_one_kind(candidates: Iterable[Candidate]) -> None:
    kinds = {candidate.damage_bpb is None: candidate for candidate in candidates}
    if len(kinds) > 1:
        with_data, without = kinds[False], kinds[True]
        raise PlanningError(
            f"{without.tensor} under {without.choice} has no damage_bpb but {with_data.tensor} "
            f"under {with_data.choice} has; the two cannot be added up, so measure all tensors "
            "with the same data, or all without"
        )
