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
    """code: bytes. models: bytes of the claimed runs' models. before: of all models before.

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
        """The sizes of one seed's run; None if that run is unknown."""
        if seed not in self.seeds:
            return None
        model, before = self.seeds[seed]
        return TrueSizes(self.code, (model,), (before,))


def corrected_claims(
    claims: Mapping[str, Any], sizes: TrueSizes, cap_bytes: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(the claims with true sizes, claim -> (old, new)); scores and everything else stay.

    artifact_bytes and similar keys mean the model alone in some submissions and the total in
    others; the old value decides which. A mean stays a mean. Means and minima are not corrected if
    some runs changed and others, whose artifacts are not in the folder, did not.
    """
    every = claimed_sizes(claims)
    corrected = copy.deepcopy(dict(claims))
    changed: dict[str, tuple[Any, Any]] = {}
    if not any(one.key.kind is Kind.TOTAL and len(one.path) == 1 for one in every):
        corrected["bytes_total"], changed["bytes_total"] = sizes.total, (None, sizes.total)
    for one in every:
        own = _sizes_of(one, every, sizes)
        size = None if own is None else _true_size(one.key, one.written, own)
        if size is not None:
            new = _written_alike(one.key, one.written, size)
            if new != one.written:
                _put(corrected, one.path, new)
                changed[one.name] = (one.written, new)
    compliance = claims.get("compliance")
    if isinstance(compliance, dict) and BOX in compliance:
        fits = sizes.total <= cap_bytes
        if compliance[BOX] is not fits:
            changed[f"compliance.{BOX}"] = (compliance[BOX], fits)
        corrected["compliance"] = {**compliance, BOX: fits}
    return corrected, changed


def _sizes_of(one: ClaimedSize, every: Sequence[ClaimedSize], sizes: TrueSizes) -> TrueSizes | None:
    """The sizes that a claim refers to; None if it is of one of several runs and it is unknown
    which."""
    if one.seed is not None and one.seed in sizes.seeds:
        return sizes.of_seed(one.seed)
    several = len(sizes.before) > 1
    if one.seed is not None:
        alone = len({other.seed for other in every if other.seed is not None}) == 1
        return sizes if alone and not several else None
    in_a_list = any(isinstance(part, int) for part in one.path)
    return None if in_a_list and several else sizes


def _put(value: Any, path: Sequence[str | int], new: Any) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = new


def _true_size(key: SizeKey, old: Any, sizes: TrueSizes) -> float | None:
    """The size that a key asks for, in bytes; None if the claim is not corrected."""
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


def _written_alike(key: SizeKey, old: Any, size: float) -> Any:
    """A size in the unit and digits of the old value, which is kept if it is right."""
    claim = size_of(old, key)
    in_its_unit = claim is not None and bool(claim.error) is (key.unit > 1)
    if in_its_unit and _means(key, old, size):
        return old
    if key.unit == 1:
        return round(size)
    decimals = len(str(old).partition(".")[2])
    return round(size / key.unit, decimals if isinstance(old, float) else 3)
