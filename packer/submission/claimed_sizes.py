"""The sizes in a submission.json: at the top, one level down, by seed, in lists of artifacts.

One walk for the checker, which reads them, and for `packer fix`, which corrects them in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packer.submission.claim_keys import UNITS, Kind, SizeKey, size_key
from packer.submission.claimed_seeds import as_seed, seed_in_key
from packer.submission.plain_numbers import plausible

# Objects with numbers of other runs, or of something other than the submission.
OF_OTHERS = re.compile(
    r"compliance|baseline|previous|parent|prior|sota|ablation|compar|memory|hardware|gpu|tokenizer|"
    r"data|train|eval|checkpoint",
    re.IGNORECASE,
)
# 16,265,723 bytes (15.51 MiB): the exact number first
WITH_UNIT = re.compile(r"[~≈]?\s*([\d,_]*\d(?:\.\d+)?)\s*([a-zA-Z]*)(?:\s*\([^)]*\))?")
LARGEST_MODEL = 24_000_000  # bytes; a larger "model" is the checkpoint before quantization
OF_ARTIFACTS = re.compile(r"artifact|size|submission", re.IGNORECASE)  # lists of them
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class ClaimedNumber:
    """A claimed number. error: half a unit of its last digit, in bytes, for sizes in MB."""

    key: str
    value: float
    error: float
    written: str

    def means(self, size: int) -> bool:
        return abs(self.value - size) <= self.error


@dataclass(frozen=True)
class ClaimedSize:
    """One size. path: keys and list indices from the top. seed: the seed it belongs to; None for
    the whole submission. written: the value in the file.
    """

    path: Path
    key: SizeKey
    seed: str | None
    written: Any

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))


def claimed_sizes(value: Mapping[str, Any]) -> list[ClaimedSize]:
    """Every size of the submission or of one seed, in file order."""
    return list(_in_object(value, (), "", None))


def _in_object(
    value: Mapping[str, Any], path: Path, around: str, seed: str | None
) -> Iterator[ClaimedSize]:
    """around: the key of the object, if it names a size; else empty."""
    own_seed = as_seed(value.get("seed")) or seed
    for key, entry in value.items():
        bare, seed_of_key = seed_in_key(key)
        whose = seed_of_key or own_seed
        meaning = size_key(bare) or (size_key(f"{around}_{bare}") if around else None)
        if isinstance(entry, dict | list):
            # Deeper numbers are of variants, unless they belong to a seed.
            if not OF_OTHERS.search(key) and (not path or whose):
                yield from _within(entry, (*path, key), bare if meaning else "", whose)
        elif meaning is not None:
            yield ClaimedSize((*path, key), meaning, whose, entry)


def _within(entries: Any, path: Path, around: str, seed: str | None) -> Iterator[ClaimedSize]:
    if isinstance(entries, dict):
        yield from _in_object(entries, path, around, seed)
        return
    of_artifacts = OF_ARTIFACTS.search(str(path[-1])) is not None
    for number, one in enumerate(entries):
        meaning = size_key(around) if around else None
        if isinstance(one, dict) and (of_artifacts or as_seed(one.get("seed"))):
            yield from _in_object(one, (*path, number), around, seed)
        elif meaning is not None and not isinstance(one, dict | list):
            yield ClaimedSize((*path, number), meaning, seed, one)


def of_the_submission(sizes: Iterable[ClaimedSize], kind: Kind) -> ClaimedNumber | None:
    """The submission's size of a kind: the top level goes before deeper ones, preferred keys before
    others, and the largest of several numbers under one key. Means do not count: they are of no
    run.
    """
    best: tuple[tuple[bool, int], Path] | None = None
    number: ClaimedNumber | None = None
    for one in sizes:
        size = size_of(one.written, one.key) if one.seed is None else None
        if one.key.kind is not kind or one.key.of != "largest" or size is None:
            continue
        rank, where = (len(one.path) == 1, one.key.preferred), _without_numbers(one.path)
        is_larger = best is not None and number is not None and size.value > number.value
        if best is None or rank > best[0] or (rank == best[0] and where == best[1] and is_larger):
            best, number = (rank, where), replace(size, key=one.name)
    return number


def _without_numbers(path: Path) -> Path:
    return tuple(part for part in path if isinstance(part, str))


def of_the_seed(sizes: Iterable[ClaimedSize], seed: str) -> ClaimedNumber | None:
    """The size of one seed's run: its artifact's, or else its total."""
    own = [one for one in sizes if one.seed == seed and one.key.of == "largest"]
    for kind in (Kind.ARTIFACT, Kind.TOTAL):
        same = sorted((one for one in own if one.key.kind is kind), key=lambda o: -o.key.preferred)
        first = next((size for o in same if (size := size_of(o.written, o.key))), None)
        if first is not None:
            return first
    return None


def size_of(written: Any, key: SizeKey) -> ClaimedNumber | None:
    """The size written under a key: in bytes, with a unit, or as a bare number of megabytes; None
    if it is not a size."""
    if isinstance(written, bool) or not isinstance(written, int | float | str) or not written:
        return None
    match = WITH_UNIT.fullmatch(str(written).strip())
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        return None
    digits = match[1].replace(",", "").replace("_", "")
    number = plausible(digits)
    if number is None:
        return None
    unit = unit if match[2] else key.unit
    in_bytes = match[2] or (key.kind is Kind.CODE and "." not in digits)
    if unit == 1 and number < 1000 and not in_bytes:
        unit = UNITS["mb"]
    decimals = len(digits.partition(".")[2])
    error = unit * 10.0**-decimals / 2 if unit > 1 else 0.0
    return ClaimedNumber(key.key, number * unit, error, str(written))
