"""What a submission.json claims, in whatever shape its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TOTAL_KEYS = ("bytes_total", "artifact_bytes_max", "artifact_bytes", "artifact_size_bytes")
CODE_KEYS = ("wrapped_code_bytes", "bytes_code", "code_bytes")
MODEL_KEYS = re.compile(r"bytes_model\w*|quantized_\w*model_bytes|model_bytes\w*")
BPB_KEYS = ("val_bpb", "mean_val_bpb", "val_bpb_mean")
NATS_KEYS = ("val_loss", "mean_val_loss", "val_loss_mean")
PLACEHOLDER = re.compile(r"tbd|pending|todo|fill|verify|unknown|n/?a|\?", re.IGNORECASE)
WITH_UNIT = re.compile(r"([\d,_]*\d(?:\.\d+)?)\s*([a-zA-Z]*)")
LARGEST = 1e15  # of sizes in bytes, steps, seconds and losses
UNITS = {"": 1, "b": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}


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
class SeedClaim:
    """What submission.json says of one seed."""

    seed: str
    bpb: float | None
    nats: float | None
    size_bytes: int | None
    steps: int | None


@dataclass(frozen=True)
class Claims:
    """total, code, model: sizes. flags: compliance booleans by name.

    problem: why the file is no JSON object; nothing else is set then. odd: values that are not
    what their key asks for, such as "TBD".
    """

    problem: str | None = None
    total: ClaimedNumber | None = None
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
    text: str = ""
    odd: tuple[str, ...] = ()


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
    model_keys = [key for key in value if MODEL_KEYS.fullmatch(key)]
    return Claims(
        total=_size(value, TOTAL_KEYS),
        code=_size(value, CODE_KEYS),
        model=_size(value, model_keys),
        bpb=_number(value, BPB_KEYS),
        nats=_number(value, NATS_KEYS),
        seeds=_seeds(value),
        seed_claims=_seed_claims(value.get("seed_results")),
        train_seconds=_number(value, ("wallclock_seconds", "train_time_seconds")),
        eval_seconds=_number(value, ("eval_time_seconds",)),
        steps=_whole(value.get("step_stop")),
        flags={key: flag for key, flag in flags.items() if isinstance(flag, bool)},
        text=" ".join(str(value.get(key, "")) for key in ("name", "blurb", "technique_summary")),
        odd=tuple(_odd(value, [*TOTAL_KEYS, *CODE_KEYS, *model_keys, *BPB_KEYS, *NATS_KEYS])),
    )


def _size(value: Mapping[str, Any], keys: Iterable[str]) -> ClaimedNumber | None:
    """The first key that holds a size: bytes, or with a unit, or a bare number of megabytes."""
    for key in keys:
        found = value.get(key)
        if isinstance(found, bool) or not isinstance(found, int | float | str) or not found:
            continue
        match = WITH_UNIT.fullmatch(str(found).strip())
        unit = UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            continue
        digits = match[1].replace(",", "").replace("_", "")
        number = _plausible(digits)
        if number is None:
            continue
        if unit == 1 and number < 1000:
            unit = UNITS["mb"]
        decimals = len(digits.partition(".")[2])
        error = unit * 10.0**-decimals / 2 if unit > 1 else 0.0
        return ClaimedNumber(key, number * unit, error, str(found))
    return None


def _odd(value: Mapping[str, Any], keys: Iterable[str]) -> Iterable[str]:
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
        elif "bytes" in key and found < 1000:
            yield f"{key} is {found}, which is megabytes, not bytes"


def _number(value: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    for key in keys:
        found = value.get(key)
        number = _plausible(found)
        if number is not None and (number or isinstance(found, str)):
            return number
    return None


def _whole(value: Any) -> int | None:
    number = None if isinstance(value, str) else _plausible(value)
    return None if number is None else int(number)


def _plausible(value: Any) -> float | None:
    """A number, or the text of one, that a run could have; None for NaN and the absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < LARGEST else None


def _seeds(value: Mapping[str, Any]) -> tuple[str, ...]:
    for key in ("seeds", "seed_results"):
        found = value.get(key)
        if isinstance(found, list | dict):
            return tuple(str(seed).removeprefix("seed_").removeprefix("seed") for seed in found)
    return ()


def _seed_claims(value: Any) -> tuple[SeedClaim, ...]:
    if not isinstance(value, dict):
        return ()
    found = []
    for seed, said in value.items():
        if not isinstance(said, dict):
            continue
        size = _size(said, (*TOTAL_KEYS, "total_bytes"))
        found.append(
            SeedClaim(
                str(seed).removeprefix("seed_").removeprefix("seed"),
                _number(said, ("val_bpb", "bpb")),
                _number(said, ("val_loss", "loss")),
                round(size.value) if size is not None and not size.error else None,
                _whole(said.get("steps", said.get("step_stop"))),
            )
        )
    return tuple(found)
