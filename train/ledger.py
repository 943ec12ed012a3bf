"""The seconds of each part of a run, and the budget it counts against.

The contest allows 600 s of training and 600 s of evaluation. Whatever reads training data belongs
to the first, calibration included (the rulings on #569 and #677); rounding, packing, saving and
compiling read none and are not charged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

BUDGETS: Mapping[str, str] = {
    "training": "training",
    "calibration": "training",
    "compilation": "none",
    "quantization": "none",
    "packing": "none",
    "evaluation": "evaluation",
    "saving": "none",
}


@dataclass(frozen=True)
class LedgerRow:
    """budget: training, evaluation, or none."""

    part: str
    seconds: float
    budget: str


class Ledger:
    """Seconds by part; parts that never ran have no row.

    wait: returns when the device has done all that it was asked to. It is called where one part
    ends and another begins, so that queued work counts for the part that queued it.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self.wait = wait
        self._open: list[str] = []  # from the outermost part to the one that counts now
        self._since = 0.0

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add what happens inside to `part`, one of `BUDGETS`; a part around it pauses.

        Inside the same part it only brings the sum up to date, without waiting for the device.
        """
        assert part in BUDGETS
        inside = part in self._open[-1:]
        if not inside:
            self._count()
        self._open.append(part)
        try:
            yield
        finally:
            self._count(waiting=not inside)
            self._open.pop()

    def _count(self, waiting: bool = True) -> None:
        """Add the time since the last count to the part that is open."""
        if waiting:
            self.wait()
        now = time.perf_counter()
        for part in self._open[-1:]:
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

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
