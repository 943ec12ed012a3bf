"""The seconds of each part of a run, and the budget it counts against.

The contest allows 600 s of training and 600 s of evaluation. Whatever reads training data belongs
to the first, calibration included (the rulings on #569 and #677); rounding, packing and compiling
read none and are not charged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BUDGETS: Mapping[str, str] = {
    "training": "training",
    "calibration": "training",
    "compilation": "none",
    "quantization": "none",
    "packing": "none",
    "evaluation": "evaluation",
}


@dataclass(frozen=True)
class LedgerRow:
    """budget: training, evaluation, or none."""

    part: str
    seconds: float
    budget: str


class Ledger:
    """Seconds by part; parts that never ran have no row."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add what happens inside to `part`, one of `BUDGETS`."""
        assert part in BUDGETS
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + spent

    @property
    def training_budget(self) -> float:
        """Seconds that count as training."""
        return sum(row.seconds for row in self.rows() if row.budget == "training")

    def rows(self) -> tuple[LedgerRow, ...]:
        return tuple(
            LedgerRow(part, self.seconds[part], budget)
            for part, budget in BUDGETS.items()
            if part in self.seconds
        )
