"""The plan: one choice for every tensor, the least damage that fits under the cap.

This is the multiple-choice knapsack problem, solved exactly by dynamic programming over the
tensors with bounds (Dyer, Riha and Walker, "A hybrid dynamic programming/branch-and-bound
algorithm for the multiple-choice knapsack problem", 1995). Bytes are counted in integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .frontier import (
    Candidate,
    Floats,
    HullSteps,
    Ints,
    PlanningError,
    by_tensor,
    hull_steps,
    undominated,
)

__all__ = ["Candidate", "InfeasibleCap", "Plan", "PlanningError", "plan_to_cap"]

Front = tuple[Candidate, ...]


class InfeasibleCap(PlanningError):  # noqa: N818  (a fact about the cap, not a mistake)
    """No combination of candidates fits.

    ``smallest_bytes`` is the smallest total there is, code, header and margin included;
    ``shortfall`` how far that is over the cap; ``largest`` the smallest candidates of the five
    tensors that take most, largest first.
    """

    def __init__(self, cap_bytes: int, fixed_bytes: int, smallest: Iterable[Candidate]) -> None:
        by_size = sorted(smallest, key=lambda c: (-c.size_bytes, c.tensor))
        self.cap_bytes = cap_bytes
        self.smallest_bytes = fixed_bytes + sum(c.size_bytes for c in by_size)
        self.shortfall = self.smallest_bytes - cap_bytes
        self.largest = tuple(by_size[:5])
        tensors = ", ".join(f"{c.tensor} {c.size_bytes:,} ({c.choice})" for c in self.largest)
        super().__init__(
            f"no plan fits under the cap of {cap_bytes:,} bytes: the smallest possible total is "
            f"{self.smallest_bytes:,}, {self.shortfall:,} too many, of which code, header and "
            f"margin take {fixed_bytes:,}; the largest tensors at their smallest are {tensors}; "
            "raise the cap, or offer smaller choices for these tensors"
        )


@dataclass(frozen=True)
class Plan:
    """One candidate for every tensor, by tensor name, and the account they were chosen for.

    ``header_bytes`` is the part of the artifact that no choice changes, ``code_bytes`` the counted
    code (0 without any), ``margin_bytes`` the bytes reserved below the cap. ``damage_kind`` is
    "damage_bpb" when every candidate has it, else "weight_error". ``price`` is the
    Lagrange multiplier, the damage that one more byte would save; 0 when no larger plan is better.
    ``gap`` is proven: no plan that fits does less than ``damage * (1 - gap)``, to float64 rounding;
    0 means that the plan is optimal.
    """

    chosen: tuple[Candidate, ...]
    cap_bytes: int
    code_bytes: int
    header_bytes: int
    margin_bytes: int
    damage_kind: str
    price: float
    gap: float

    @property
    def choices(self) -> dict[str, str]:
        """Tensor name -> choice."""
        return {candidate.tensor: candidate.choice for candidate in self.chosen}

    @property
    def artifact_bytes(self) -> int:
        """The header and every tensor."""
        return self.header_bytes + sum(candidate.size_bytes for candidate in self.chosen)

    @property
    def total_bytes(self) -> int:
        """Code and artifact: what the cap limits."""
        return self.code_bytes + self.artifact_bytes

    @property
    def unused_bytes(self) -> int:
        """Bytes left below the cap, the margin included."""
        return self.cap_bytes - self.total_bytes

    @property
    def damage(self) -> float:
        """The summed damage, in units of ``damage_kind``."""
        return math.fsum(candidate.damage for candidate in self.chosen)


def plan_to_cap(
    candidates: Iterable[Candidate],
    *,
    cap_bytes: int,
    code_bytes: int = 0,
    header_bytes: int = 0,
    margin_bytes: int = 0,
    max_partial_plans: int = 10_000,
) -> Plan:
    """The plan of least damage with code + header + tensors + margin <= cap.

    The order of the candidates does not matter. The search keeps at most ``max_partial_plans``
    at a time (real models need hundreds); only when that forces it to drop some can the plan be
    less than optimal, and then ``gap`` bounds by how much. The limit is not one of time, so that a
    slow or busy machine makes the same plan.

    Raises PlanningError for invalid candidates or byte counts, naming the tensor, and
    InfeasibleCap when even the smallest candidates do not fit.
    """
    account = {"code": code_bytes, "header": header_bytes, "margin": margin_bytes}
    _check_account(cap_bytes, account)
    fronts = [undominated(group) for group in by_tensor(candidates).values()]
    fixed_bytes = sum(account.values())
    room = cap_bytes - fixed_bytes
    if sum(front[0].size_bytes for front in fronts) > room:
        raise InfeasibleCap(cap_bytes, fixed_bytes, [front[0] for front in fronts])
    # Widest first: the narrow ones, left for last, keep the bound of the rest close to the truth.
    fronts.sort(key=lambda front: front[0].size_bytes - front[-1].size_bytes)
    steps = hull_steps(fronts)
    chosen, gap = _least_damage(fronts, steps, room, max_partial_plans)
    return Plan(
        chosen=tuple(sorted(chosen, key=lambda candidate: candidate.tensor)),
        cap_bytes=cap_bytes,
        code_bytes=code_bytes,
        header_bytes=header_bytes,
        margin_bytes=margin_bytes,
        damage_kind="weight_error" if chosen[0].damage_bpb is None else "damage_bpb",
        price=_Relaxation(fronts, steps, 0).price(room),
        gap=gap,
    )


def _check_account(cap_bytes: int, parts: dict[str, int]) -> None:
    if cap_bytes <= 0:
        raise PlanningError(f"the cap is {cap_bytes} bytes; it must be at least 1")
    for name, count in parts.items():
        if count < 0:
            raise PlanningError(f"the {name} is {count} bytes; it must be 0 or more")


@dataclass(frozen=True, eq=False)
class _Layer:
    """Partial plans, one candidate for each tensor so far, as arrays [partial plans].

    Each one extends the partial plan ``parent`` of the layer before by ``candidate``.
    """

    total_bytes: Ints
    damage: Floats
    parent: Ints
    candidate: Ints

    def among(self, chosen: Ints) -> _Layer:
        return _Layer(
            self.total_bytes[chosen],
            self.damage[chosen],
            self.parent[chosen],
            self.candidate[chosen],
        )

    def extended(self, front: Front) -> _Layer:
        """Every partial plan with every candidate of the next tensor."""
        sizes = np.array([candidate.size_bytes for candidate in front], dtype=np.int64)
        damages = np.array([candidate.damage for candidate in front], dtype=np.float64)
        parent, candidate = np.indices((len(self.damage), len(front))).reshape(2, -1)
        return _Layer(
            self.total_bytes[parent] + sizes[candidate],
            self.damage[parent] + damages[candidate],
            parent,
            candidate,
        )


class _Relaxation:
    """The sweep over the tensors from ``depth`` on: a bound, and a plan that comes close to it."""

    def __init__(self, fronts: Sequence[Front], steps: HullSteps, depth: int) -> None:
        self.depth, self.tensors = depth, len(fronts) - depth
        self.steps = steps.among(steps.tensor >= depth)
        self.total_bytes, self.damage = self.steps.trace(
            sum(front[0].size_bytes for front in fronts[depth:]),
            math.fsum(front[-1].damage for front in fronts[depth:]),
        )

    def bounds(self, room: Ints) -> Floats:
        """A lower bound of the damage within ``room`` bytes; infinite if nothing fits."""
        return np.interp(room, self.total_bytes, self.damage, left=np.inf)

    def reached(self, room: Ints) -> Floats:
        """The damage where the sweep stands after ``room`` bytes; infinite if nothing fits."""
        steps = self._steps_within(room)
        return np.where(steps < 0, np.inf, self.damage[steps])

    def choice(self, room: int) -> list[int]:
        """The candidate of each tensor where the sweep stands after ``room`` bytes."""
        count = int(self._steps_within(np.int64(room)))
        chosen = [0] * self.tensors
        steps = zip(self.steps.tensor[:count], self.steps.candidate[:count], strict=True)
        for tensor, candidate in steps:
            chosen[tensor - self.depth] = int(candidate)
        return chosen

    def price(self, room: int) -> float:
        """The damage that one more byte saves; 0 where the sweep has ended."""
        step = int(self._steps_within(np.int64(room)))
        if step == len(self.steps.tensor):
            return 0.0
        return float(self.steps.saved_damage[step] / self.steps.added_bytes[step])

    def _steps_within(self, room: Ints | np.int64) -> Ints:
        return np.asarray(np.searchsorted(self.total_bytes, room, side="right") - 1)


def _least_damage(
    fronts: Sequence[Front], steps: HullSteps, room: int, max_partial_plans: int
) -> tuple[Front, float]:
    """The best plan within ``room`` bytes, in the order of ``fronts``, and its proven gap."""
    zero = np.zeros(1, dtype=np.int64)
    layers = [_Layer(zero, np.zeros(1), zero, zero)]
    best: list[int] = []
    best_damage = least_dropped = math.inf
    for depth in range(len(fronts) + 1):
        layer, rest = layers[-1], _Relaxation(fronts, steps, depth)
        left = room - layer.total_bytes
        completed = layer.damage + rest.reached(left)
        leader = int(np.argmin(completed))
        if completed[leader] < best_damage:
            best_damage = float(completed[leader])
            best = _path(layers, leader) + rest.choice(int(left[leader]))
        bounds = layer.damage + rest.bounds(left)
        kept, dropped = _survivors(layer, bounds, best_damage, max_partial_plans)
        least_dropped = min(least_dropped, dropped)
        if not len(kept):
            break
        layers[-1] = layer.among(kept)
        layers.append(layers[-1].extended(fronts[depth]))
    gap = (best_damage - least_dropped) / best_damage if least_dropped < best_damage else 0.0
    return tuple(front[i] for front, i in zip(fronts, best, strict=True)), gap


def _survivors(layer: _Layer, bounds: Floats, best_damage: float, limit: int) -> tuple[Ints, float]:
    """The partial plans that may still beat the best, and the least bound of those over ``limit``.

    Of two with the same future, the one larger in bytes without less damage goes.
    """
    able = np.flatnonzero(bounds < best_damage)
    able = able[np.lexsort((layer.damage[able], layer.total_bytes[able]))]
    damage = layer.damage[able]
    of_smaller = np.concatenate([[np.inf], np.minimum.accumulate(damage)])[:-1]
    kept = able[damage < of_smaller]
    if len(kept) <= limit:
        return kept, math.inf
    kept = kept[np.argsort(bounds[kept], kind="stable")]
    return kept[:limit], float(bounds[kept[limit]])


def _path(layers: Sequence[_Layer], index: int) -> list[int]:
    """The candidate of each tensor that led to partial plan ``index`` of the last layer."""
    path: list[int] = []
    for layer in layers[:0:-1]:
        path.append(int(layer.candidate[index]))
        index = int(layer.parent[index])
    return path[::-1]
