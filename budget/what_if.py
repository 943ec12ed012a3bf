"""The best plan under other caps, each solved exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .frontier import Candidate
from .plan import InfeasibleCap, Plan, plan_to_cap


@dataclass(frozen=True)
class WhatIf:
    """The best plan under another cap; ``total_bytes`` and the damages are None where none fits."""

    offset_bytes: int
    cap_bytes: int
    total_bytes: int | None
    damage: float | None
    damage_change: float | None  # against the plan at hand: negative is better


def what_if(
    candidates: Iterable[Candidate],
    plan: Plan,
    offsets: Sequence[int] = (-200_000, -50_000, 50_000, 200_000),
) -> tuple[WhatIf, ...]:
    """The best plan with the cap moved by each offset, each solved exactly.

    ``candidates`` are those the plan was made from. Raises PlanningError as plan_to_cap does,
    except for a cap under which nothing fits: that is an answer.
    """
    candidates = tuple(candidates)
    return tuple(_plan_moved(candidates, plan, offset) for offset in offsets)


def _plan_moved(candidates: tuple[Candidate, ...], plan: Plan, offset: int) -> WhatIf:
    cap_bytes = plan.cap_bytes + offset
    if cap_bytes <= 0:
        return WhatIf(offset, cap_bytes, None, None, None)
    try:
        moved = plan_to_cap(
            candidates,
            cap_bytes=cap_bytes,
            code_bytes=plan.code_bytes,
            header_bytes=plan.header_bytes,
            margin_bytes=plan.margin_bytes,
        )
    except InfeasibleCap:
        return WhatIf(offset, cap_bytes, None, None, None)
    return WhatIf(offset, cap_bytes, moved.total_bytes, moved.damage, moved.damage - plan.damage)
