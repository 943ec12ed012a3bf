"""What a submission.json says of its seeds: an object by seed, or a list of objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEED = re.compile(r"(?:seed)?[_ -]?(\d{1,9})", re.IGNORECASE)
PREFERRED = ("seed_results", "seeds")


@dataclass(frozen=True)
class SeedClaim:
    """What submission.json says of one seed."""

    seed: str
    bpb: float | None
    nats: float | None
    size_bytes: int | None
    steps: int | None


def seed_entries(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Seed -> what is said of it, from the first value that says it of every one of them."""
    keys = [key for key in PREFERRED if key in value] + list(value)
    return next((found for key in keys if (found := _entries(value[key]))), {})


def _entries(value: Any) -> dict[str, dict[str, Any]]:
    pairs: list[tuple[str, dict[str, Any]]]
    if isinstance(value, list):
        pairs = [(str(one.get("seed", "")), one) for one in value if isinstance(one, dict)]
        if len(pairs) < len(value):
            return {}
    elif isinstance(value, dict):
        pairs = [(str(key), one) for key, one in value.items() if isinstance(one, dict)]
    else:
        return {}
    found = {match[1]: one for key, one in pairs if (match := SEED.fullmatch(key.strip()))}
    return found if len(found) == len(pairs) else {}


def claimed_seeds(
    value: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The seeds by number, wherever they are told."""
    told = value.get("seeds", value.get("seed_results"))
    if isinstance(told, list | dict) and not any(isinstance(one, dict) for one in told):
        seeds = [SEED.fullmatch(str(one).strip()) for one in told]
        if all(seeds):
            return tuple(match[1] for match in seeds if match)
    return tuple(entries)
