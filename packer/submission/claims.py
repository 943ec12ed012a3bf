"""What a submission.json claims, in whatever shape its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from packer.submission.claim_keys import UNITS, Kind, SizeKey, size_keys
from packer.submission.claimed_seeds import SeedClaim, claimed_seeds, seed_entries
from packer.submission.plain_numbers import plausible, whole

CLAIMS = "submission.json"
BPB_KEYS = ("val_bpb", "mean_val_bpb", "val_bpb_mean")
OTHER_BPB_KEYS = ("final_val_bpb", "val_bpb_final", "final_bpb", "mean_bpb", "bpb")
NATS_KEYS = ("val_loss", "mean_val_loss", "val_loss_mean")
TRACK_KEYS = ("track", "category", "submission_type", "record_type", "type")
FLAGS_OF_TRACK = ("non_record", "is_non_record", "unlimited_compute")
# Objects with numbers of other runs, or of something else than what is submitted.
OF_OTHERS = re.compile(
    r"compliance|baseline|previous|parent|prior|sota|ablation|compar|memory|hardware|gpu|tokenizer|"
    r"data|train|eval|checkpoint",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(r"tbd|pending|todo|fill|verify|unknown|n/?a|\?", re.IGNORECASE)
# 16,265,723 bytes (15.51 MiB): the exact number first
WITH_UNIT = re.compile(r"[~≈]?\s*([\d,_]*\d(?:\.\d+)?)\s*([a-zA-Z]*)(?:\s*\([^)]*\))?")
LARGEST_MODEL = 24_000_000  # bytes; a larger "model" is the checkpoint before quantization


@dataclass(frozen=True)
class ClaimedNumber:
    """A number as written. error: half of its last digit, in bytes, for sizes in MB."""

    key: str
    value: float
    error: float
    written: str

    def means(self, size: int) -> bool:
        return abs(self.value - size) <= self.error


@dataclass(frozen=True)
class Claims:
    """total, code, model: sizes; artifact: the model, or the total. flags: compliance booleans by
    name. track, hardware: as written.

    problem: why the file is no JSON object; nothing else is set then. odd: values that are not
    what their key asks for, such as "TBD". value: the whole object.
    """

    problem: str | None = None
    total: ClaimedNumber | None = None
    artifact: ClaimedNumber | None = None
    code: ClaimedNumber | None = None
    model: ClaimedNumber | None = None
    bpb: float | None = None
    nats: float | None = None
    seeds: tuple[str, ...] = ()
    seed_claims: tuple[SeedClaim, ...] = ()
    train_seconds: float | None = None
    eval_seconds: float | None = None
    steps: int | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    track: str = ""
    hardware: str = ""
    text: str = ""
    odd: tuple[str, ...] = ()
    value: Mapping[str, Any] = field(default_factory=dict)


def parse_claims(text: str) -> Claims:
    """The claims in a submission.json; never fails, see Claims.problem."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Claims(problem=f"it is not valid JSON: {error}")
    if not isinstance(value, dict):
        return Claims(problem=f"it holds a {type(value).__name__} where an object belongs")
    compliance = value.get("compliance")
    flags = compliance if isinstance(compliance, dict) else {}
    # What stands one level down counts where nothing of its kind stands at the top.
    inner = dict(_one_level_down(value))
    kinds, inner_kinds = size_keys(value), size_keys(inner)
    odd = [*_odd_sizes(value, kinds), *_odd_numbers(value, (*BPB_KEYS, *NATS_KEYS))]
    bpb = _number(value, BPB_KEYS)
    if bpb is None:
        key, bpb = _bpb_elsewhere(value, inner)
        odd += [f"it claims {bpb} as {key}; the contest reads val_bpb"] if key else []
    entries = seed_entries(value)
    sizes = {kind: _size(value, kinds[kind]) or _size(inner, inner_kinds[kind]) for kind in Kind}
    model = sizes[Kind.MODEL]
    if model is not None and model.value > LARGEST_MODEL:
        odd.append(f"{model.key} is {model.written}, the checkpoint's rather than an artifact's")
        sizes[Kind.MODEL] = None
    return Claims(
        total=sizes[Kind.TOTAL] or sizes[Kind.ARTIFACT],
        artifact=sizes[Kind.ARTIFACT],
        code=sizes[Kind.CODE],
        model=sizes[Kind.MODEL],
        bpb=bpb,
        nats=_number(value, NATS_KEYS),
        seeds=claimed_seeds(value, entries),
        seed_claims=tuple(_seed_claim(seed, said) for seed, said in entries.items()),
        train_seconds=_number(value, ("wallclock_seconds", "train_time_seconds")),
        eval_seconds=_number(value, ("eval_time_seconds",)),
        steps=whole(value.get("step_stop")),
        flags={key: flag for key, flag in flags.items() if isinstance(flag, bool)},
        track=_track(value),
        hardware=str(value.get("hardware", "")),
        text=" ".join(str(value.get(key, "")) for key in ("name", "blurb", "technique_summary")),
        odd=tuple(odd),
        value=value,
    )


def _one_level_down(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, found in value.items():
        if isinstance(found, dict) and not OF_OTHERS.search(key):
            yield from ((str(inner), one) for inner, one in found.items())


def _track(value: Mapping[str, Any]) -> str:
    said = [value[key] for key in TRACK_KEYS if isinstance(value.get(key), str)]
    said += [key for key in FLAGS_OF_TRACK if value.get(key) is True]
    return " ".join(said)


def _bpb_elsewhere(
    value: Mapping[str, Any], inner: Mapping[str, Any]
) -> tuple[str | None, float | None]:
    for where, keys in ((value, OTHER_BPB_KEYS), (inner, (*BPB_KEYS, *OTHER_BPB_KEYS))):
        for key in keys:
            found = _number(where, (key,))
            if found:
                return key, found
    return None, None


def _seed_claim(seed: str, said: Mapping[str, Any]) -> SeedClaim:
    kinds = size_keys(said)
    size = _size(said, [*kinds[Kind.ARTIFACT], *kinds[Kind.TOTAL]])
    return SeedClaim(
        seed,
        _number(said, ("val_bpb", "bpb")),
        _number(said, ("val_loss", "loss")),
        round(size.value) if size is not None and not size.error else None,
        whole(said.get("steps", said.get("step_stop"))),
    )


def _size(value: Mapping[str, Any], keys: Iterable[SizeKey]) -> ClaimedNumber | None:
    """The first key that holds a size: in bytes, with a unit, or a bare number of megabytes.

    A mean is none: it is no run's.
    """
    keys = [key for key in keys if key.of == "largest"]
    return next((size for key in keys if (size := size_of(value.get(key.key), key))), None)


def size_of(found: Any, key: SizeKey) -> ClaimedNumber | None:
    """What is written under a key, as a size; None where it is none."""
    if isinstance(found, bool) or not isinstance(found, int | float | str) or not found:
        return None
    match = WITH_UNIT.fullmatch(str(found).strip())
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
    return ClaimedNumber(key.key, number * unit, error, str(found))


def _odd_sizes(value: Mapping[str, Any], kinds: Mapping[Kind, list[SizeKey]]) -> Iterator[str]:
    for key in (key for same in kinds.values() for key in same):
        found = value[key.key]
        if isinstance(found, str) and size_of(found, key) is not None and key.unit > 1:
            continue
        yield from _odd_numbers(value, (key.key,))
        size = None if isinstance(found, str) else size_of(found, key)
        if "bytes" in key.key and size is not None and size.error:
            yield f"{key.key} is {found}, which is megabytes, not bytes"


def _odd_numbers(value: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if key not in value:
            continue
        found = value[key]
        if found == 0 or found is None or found == "":
            yield f"{key} is {json.dumps(found)}"
        elif isinstance(found, str):
            kind = "a placeholder" if PLACEHOLDER.search(found) else "text instead of a number"
            yield f"{key} is {found!r}, {kind}"
        elif isinstance(found, bool | list | dict):
            yield f"{key} is a {type(found).__name__}, not a number"


def _number(value: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    for key in keys:
        found = value.get(key)
        number = plausible(found)
        if number is not None and (number or isinstance(found, str)):
            return number
    return None
