"""Names for people to read: layers 0, 1, 2, ... 10, and not 0, 1, 10, 2."""

from __future__ import annotations

import re
from collections.abc import Iterable


def natural_key(name: str) -> list[tuple[str, int]]:
    """Sorts texts by their letters and the numbers in them by size."""
    parts = re.split(r"(\d+)", name)
    numbers = [*map(int, parts[1::2]), -1]
    return list(zip(parts[::2], numbers, strict=True))


def natural_order(names: Iterable[str]) -> list[str]:
    """Names that stand in alphabetical order, with the numbers in them by size; in any other order
    they stand on purpose, and stay.
    """
    listed = list(names)
    return sorted(listed, key=natural_key) if listed == sorted(listed) else listed
