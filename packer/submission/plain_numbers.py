"""Reads plausible numbers from JSON values."""

from __future__ import annotations

from typing import Any

LARGEST = 1e15  # of sizes in bytes, steps, seconds and losses


def plausible(value: Any) -> float | None:
    """A number, or the text of one, of plausible size; None for NaN and absurdly large ones."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < LARGEST else None


def whole(value: Any) -> int | None:
    """A plausible number truncated to an integer; None for texts."""
    number = None if isinstance(value, str) else plausible(value)
    return None if number is None else int(number)
