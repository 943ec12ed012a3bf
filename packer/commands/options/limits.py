"""Options of commands that plan: what to fit, and how to measure."""

from __future__ import annotations

from typing import Any

from packer.planning.options import MeasureOptions, PlanLimits


def plan_limits(cap: int | None, margin: int = 0, **others: Any) -> PlanLimits:
    """cap: 0 in the limits where none is given. others: fields of PlanLimits by name."""
    return PlanLimits(cap or 0, margin_bytes=margin, **others)


def measure_options(
    pins: tuple[tuple[str, str], ...] = (), coder: str | None = None, trellis: bool = False
) -> MeasureOptions:
    """pins: (selector, choice); the last on a selector wins."""
    return MeasureOptions(dict(pins), {}, coder, trellis)
