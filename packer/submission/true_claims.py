"""The claims of submission.json with true sizes in them."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packer.submission.claim_keys import Kind, SizeKey, size_key
from packer.submission.claimed_seeds import seed_entries
from packer.submission.claims import size_of

BOX = "artifact_under_16mb"


@dataclass(frozen=True)
class TrueSizes:
    """code: bytes. models: of the runs that are claimed, in bytes. before: all that there were."""

    code: int
    models: Sequence[int]
    before: Sequence[int]

    @property
    def total(self) -> int:
        return self.code + max(self.models)


def corrected_claims(
    claims: Mapping[str, Any], sizes: TrueSizes, cap_bytes: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(the claims with true sizes, claim -> (old, new)); scores and everything else stay.

    artifact_bytes and its like mean the model alone in some submissions and the total in others:
    which of the two is told by the old value. A mean stays one. Means and least values stay as they
    are where some runs changed and others, whose artifacts are not here, did not.
    """
    meanings = [meaning for key in claims if (meaning := size_key(key)) is not None]
    wanted: dict[str, Any] = {}
    if not any(meaning.kind is Kind.TOTAL for meaning in meanings):
        wanted["bytes_total"] = sizes.total
    for meaning in meanings:
        size = _true_size(meaning, claims[meaning.key], sizes)
        if size is not None:
            wanted[meaning.key] = _spelled(meaning, claims[meaning.key], size)
    found = {**claims, **wanted}
    changed = {
        key: (claims.get(key), value) for key, value in wanted.items() if claims.get(key) != value
    }
    if len(sizes.before) == 1:
        found, of_the_seed = _corrected_seed(found, sizes)
        changed |= of_the_seed
    compliance = claims.get("compliance")
    if isinstance(compliance, dict) and BOX in compliance:
        fits = sizes.total <= cap_bytes
        if compliance[BOX] is not fits:
            changed[f"compliance.{BOX}"] = (compliance[BOX], fits)
        found["compliance"] = {**compliance, BOX: fits}
    return found, changed


def _corrected_seed(
    claims: Mapping[str, Any], sizes: TrueSizes
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The same of what is said of one seed, where there is one, and one run, which is its."""
    found = copy.deepcopy(dict(claims))
    entries = seed_entries(found)
    changed: dict[str, tuple[Any, Any]] = {}
    if len(entries) == 1:
        ((seed, entry),) = entries.items()
        for key, old in list(entry.items()):
            meaning = size_key(key)
            size = None if meaning is None else _true_size(meaning, old, sizes)
            if meaning is not None and size is not None:
                entry[key] = _spelled(meaning, old, size)
                if entry[key] != old:
                    changed[f"seed {seed}: {key}"] = (old, entry[key])
    return found, changed


def _true_size(key: SizeKey, old: Any, sizes: TrueSizes) -> float | None:
    """The size that a key asks for, in bytes; None where it stays as it is."""
    if isinstance(old, dict | list | bool):
        return None
    if key.kind is Kind.CODE:
        return sizes.code
    if key.of != "largest" and sizes.models != sizes.before and len(sizes.before) > 1:
        return None
    model = _summary(key, sizes.models)
    if key.kind is Kind.MODEL:
        return model
    once = sizes.before if key.of == "largest" else (_summary(key, sizes.before),)
    means_model = key.kind is Kind.ARTIFACT and any(_means(key, old, size) for size in once)
    return model if means_model else model + sizes.code


def _summary(key: SizeKey, models: Sequence[int]) -> float:
    if key.of == "mean":
        return statistics.fmean(models)
    return max(models) if key.of == "largest" else min(models)


def _means(key: SizeKey, old: Any, size: float) -> bool:
    claim = size_of(old, key)
    return claim is not None and abs(claim.value - size) <= max(claim.error, 0.51)


def _spelled(key: SizeKey, old: Any, size: float) -> Any:
    """A size as the old value was written: untouched where it is right, in its unit otherwise."""
    claim = size_of(old, key)
    in_its_unit = claim is not None and bool(claim.error) is (key.unit > 1)
    if in_its_unit and _means(key, old, size):
        return old
    if key.unit == 1:
        return round(size)
    decimals = len(str(old).partition(".")[2])
    return round(size / key.unit, decimals if isinstance(old, float) else 3)
