"""The claims of submission.json with true sizes in them."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packer.submission.claim_keys import Kind, SizeKey
from packer.submission.claimed_sizes import ClaimedSize, claimed_sizes, size_of

BOX = "artifact_under_16mb"


@dataclass(frozen=True)
class TrueSizes:
    """code: bytes. models: of the runs that are claimed, in bytes. before: all that there were.

    seeds: seed -> (model, model before) of the runs whose seeds are known.
    """

    code: int
    models: Sequence[int]
    before: Sequence[int]
    seeds: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.code + max(self.models)

    def of_seed(self, seed: str) -> TrueSizes | None:
        """Of one seed's run; None where it is not known which that is."""
        if seed not in self.seeds:
            return None
        model, before = self.seeds[seed]
        return TrueSizes(self.code, (model,), (before,))


def corrected_claims(
    claims: Mapping[str, Any], sizes: TrueSizes, cap_bytes: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(the claims with true sizes, claim -> (old, new)); scores and everything else stay.

    artifact_bytes and its like mean the model alone in some submissions and the total in others:
    which of the two is told by the old value. A mean stays one. Means and least values stay as they
    are where some runs changed and others, whose artifacts are not here, did not.
    """
    every = claimed_sizes(claims)
    found = copy.deepcopy(dict(claims))
    changed: dict[str, tuple[Any, Any]] = {}
    if not any(one.key.kind is Kind.TOTAL and len(one.path) == 1 for one in every):
        found["bytes_total"], changed["bytes_total"] = sizes.total, (None, sizes.total)
    for one in every:
        own = _sizes_of(one, every, sizes)
        size = None if own is None else _true_size(one.key, one.written, own)
        if size is not None:
            new = _spelled(one.key, one.written, size)
            if new != one.written:
                _put(found, one.path, new)
                changed[one.name] = (one.written, new)
    compliance = claims.get("compliance")
    if isinstance(compliance, dict) and BOX in compliance:
        fits = sizes.total <= cap_bytes
        if compliance[BOX] is not fits:
            changed[f"compliance.{BOX}"] = (compliance[BOX], fits)
        found["compliance"] = {**compliance, BOX: fits}
    return found, changed


def _sizes_of(one: ClaimedSize, every: Sequence[ClaimedSize], sizes: TrueSizes) -> TrueSizes | None:
    """The sizes that a claim is of; None where it is of one of several runs, and nothing tells of
    which."""
    if one.seed is not None and one.seed in sizes.seeds:
        return sizes.of_seed(one.seed)
    several = len(sizes.before) > 1
    if one.seed is not None:
        alone = len({other.seed for other in every if other.seed is not None}) == 1
        return sizes if alone and not several else None
    in_a_list = any(isinstance(part, int) for part in one.path)
    return None if in_a_list and several else sizes


def _put(found: Any, path: Sequence[str | int], new: Any) -> None:
    for part in path[:-1]:
        found = found[part]
    found[path[-1]] = new


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
