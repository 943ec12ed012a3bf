"""Explains a tensor's choice: the cost of every candidate at the plan's Lagrange multiplier."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from packer.errors import SelectorError
from packer.planning.plan import PackPlan


@dataclass(frozen=True)
class Explained:
    """One candidate. cost: damage plus price times bytes; the plan takes the lowest, or the next
    one if the last bytes under the cap decide. verdict: why it was or was not chosen.
    """

    choice: str
    size_bytes: int
    damage: float
    cost: float
    chosen: bool
    verdict: str


def explain(pack_plan: PackPlan, tensor: str) -> tuple[Explained, ...]:
    """Candidates of one tensor by size. Raises SelectorError: no such tensor."""
    by_tensor = pack_plan.measurement.by_tensor
    if tensor not in by_tensor:
        near = difflib.get_close_matches(tensor, by_tensor, 1, 0)
        raise SelectorError(f"the plan has no tensor {tensor!r}; the nearest is {near[0]!r}")
    chosen = next(c for c in pack_plan.plan.chosen if c.tensor == tensor)
    price = pack_plan.plan.price or 0.0
    least = min(c.damage + price * c.size_bytes for c in by_tensor[tensor])
    lines = []
    for one in sorted(by_tensor[tensor], key=lambda c: (c.size_bytes, c.damage)):
        size, damage = one.size_bytes, one.damage
        cost = damage + price * size
        better = [c for c in by_tensor[tensor] if c.size_bytes <= size and c.damage < damage]
        if one == chosen:
            verdict = "chosen" if cost == least else "chosen to fill the last bytes"
            if tensor in pack_plan.pins:
                verdict = "pinned"
        elif better:
            verdict = f"{better[0].choice} is no larger and better"
        else:
            verdict = f"costs {cost - (chosen.damage + price * chosen.size_bytes):+.3g}"
        lines.append(Explained(one.choice, size, damage, cost, one == chosen, verdict))
    return tuple(lines)
