"""The claims of a submission.json for each seed: an object by seed, a list of objects, or keys that
name a seed, such as val_bpb_seed42."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packer.submission.claim_keys import size_key

SEED = re.compile(r"(?:seed)?[_ -]?(\d{1,9})", re.IGNORECASE)
IN_KEY = re.compile(r"(?:^|[_ -])seed[_ -]?(\d{1,9})(?=$|[_ -])", re.IGNORECASE)
BY_SEED = re.compile(r"(?:^|[_ -])(?:by|per|each|all)[_ -]seeds?$", re.IGNORECASE)
PREFERRED = ("seed_results", "seeds")
# Objects with numbers as keys may be by step or layer, unless their key matches this.
OF_SEEDS = re.compile(r"seed|run|result", re.IGNORECASE)
OF_SCORES = ("val_bpb", "val_loss", "bpb")


@dataclass(frozen=True)
class SeedClaim:
    """The claims for one seed."""

    seed: str
    bpb: float | None
    nats: float | None
    size_bytes: int | None
    steps: int | None


def as_seed(value: object) -> str | None:
    """The seed in any of its spellings: 42, "42", "seed_42"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    match = SEED.fullmatch(str(value).strip())
    return match[1] if match else None


def seed_in_key(key: str) -> tuple[str, str | None]:
    """(the key without its seed, the seed that it names or None); a key that is only a seed leaves
    an empty key.
    """
    if SEED.fullmatch(key.strip()):
        return "", as_seed(key)
    match = IN_KEY.search(key)
    if match is None:
        return BY_SEED.sub("", key), None
    return (key[: match.start()] + key[match.end() :]).strip("_ -"), match[1]


def seed_entries(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Seed -> its claims, from the first value with an entry per seed, and from keys that name a
    seed.
    """
    keys = [key for key in PREFERRED if key in value]
    keys += [key for key in value if OF_SEEDS.search(key)]
    by_seed = next((claims for key in keys if (claims := _entries(value[key]))), {})
    entries = {seed: dict(one) for seed, one in by_seed.items()}
    for key, entry in value.items():
        bare, seed = seed_in_key(key)
        if seed is not None and bare and not isinstance(entry, dict | list):
            entries.setdefault(seed, {}).setdefault(bare, entry)
        elif isinstance(entry, dict) and (bare != key or bare in OF_SCORES or size_key(bare)):
            for inner, one in entry.items():
                if (seed := as_seed(inner)) and not isinstance(one, dict | list):
                    entries.setdefault(seed, {}).setdefault(bare, one)
    return entries


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
    entries = {seed: one for key, one in pairs if (seed := as_seed(key))}
    return entries if len(entries) == len(pairs) else {}


def claimed_seeds(
    value: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """All seeds that submission.json names."""
    listed = value.get("seeds", value.get("seed_results"))
    if isinstance(listed, list | dict) and not any(isinstance(one, dict) for one in listed):
        seeds = [as_seed(one) for one in listed]
        if all(seeds):
            return tuple(seed for seed in seeds if seed)
    return tuple(entries)
