"""The claims of a submission.json, in any of the shapes that authors use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from packer.submission.claim_keys import Kind
from packer.submission.claimed_seeds import SeedClaim, claimed_seeds, seed_entries
from packer.submission.claimed_sizes import (
    LARGEST_MODEL,
    OF_OTHERS,
    ClaimedNumber,
    ClaimedSize,
    claimed_sizes,
    of_the_seed,
    of_the_submission,
    size_of,
)
from packer.submission.hardware import Hardware, claimed_hardware
from packer.submission.plain_numbers import plausible, whole

CLAIMS = "submission.json"
BPB_KEYS = ("val_bpb", "mean_val_bpb", "val_bpb_mean")
OTHER_BPB_KEYS = ("final_val_bpb", "val_bpb_final", "final_bpb", "mean_bpb", "bpb")
NATS_KEYS = ("val_loss", "mean_val_loss", "val_loss_mean")
TRACK_KEYS = ("track", "category", "submission_type", "record_type", "type")
FLAGS_OF_TRACK = ("non_record", "is_non_record", "non_record_submission", "unlimited_compute")
FLAGS_OF_RECORDS = ("record", "is_record", "record_submission")
PLACEHOLDER = re.compile(r"tbd|pending|todo|fill|verify|unknown|n/?a|\?", re.IGNORECASE)


@dataclass(frozen=True)
class Claims:
    """total, code, model: sizes; artifact: the model, or the total. flags: compliance booleans by
    name. track: as written.

    problem: why the file is not a JSON object; nothing else is set then. odd: values of the wrong
    kind for their key, such as "TBD". value: the whole object.
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
    hardware: Hardware = field(default_factory=Hardware)
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
    inner = dict(_one_level_down(value))
    every = claimed_sizes(value)
    odd = [*_odd_sizes(value, every), *_odd_numbers(value, (*BPB_KEYS, *NATS_KEYS))]
    bpb = _number(value, BPB_KEYS)
    if bpb is None:
        key, bpb = _bpb_elsewhere(value, inner)
        odd += [f"it claims {bpb} as {key}; the contest reads val_bpb"] if key else []
    entries = seed_entries(value)
    sizes = {kind: of_the_submission(every, kind) for kind in Kind}
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
        seed_claims=tuple(_seed_claim(seed, entry, every) for seed, entry in entries.items()),
        train_seconds=_number(value, ("wallclock_seconds", "train_time_seconds")),
        eval_seconds=_number(value, ("eval_time_seconds",)),
        steps=whole(value.get("step_stop")),
        flags={key: flag for key, flag in flags.items() if isinstance(flag, bool)},
        track=_track(value),
        hardware=claimed_hardware(value),
        text=" ".join(str(value.get(key, "")) for key in ("name", "blurb", "technique_summary")),
        odd=tuple(odd),
        value=value,
    )


def _one_level_down(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        if isinstance(entry, dict) and not OF_OTHERS.search(key):
            yield from ((str(inner), one) for inner, one in entry.items())


def _track(value: Mapping[str, Any]) -> str:
    texts = [value[key] for key in TRACK_KEYS if isinstance(value.get(key), str)]
    texts += [key for key in FLAGS_OF_TRACK if value.get(key) is True]
    texts += [f"non-record: {key} is false" for key in FLAGS_OF_RECORDS if value.get(key) is False]
    return " ".join(texts)


def _bpb_elsewhere(
    value: Mapping[str, Any], inner: Mapping[str, Any]
) -> tuple[str | None, float | None]:
    for where, keys in ((value, OTHER_BPB_KEYS), (inner, (*BPB_KEYS, *OTHER_BPB_KEYS))):
        for key in keys:
            number = _number(where, (key,))
            if number:
                return key, number
    return None, None


def _seed_claim(seed: str, entry: Mapping[str, Any], sizes: Iterable[ClaimedSize]) -> SeedClaim:
    size = of_the_seed(sizes, seed)
    return SeedClaim(
        seed,
        _number(entry, ("val_bpb", "bpb")),
        _number(entry, ("val_loss", "loss")),
        round(size.value) if size is not None and not size.error else None,
        whole(entry.get("steps", entry.get("step_stop"))),
    )


def _odd_sizes(value: Mapping[str, Any], sizes: Iterable[ClaimedSize]) -> Iterator[str]:
    for one in (one for one in sizes if len(one.path) == 1 and one.seed is None):
        size = size_of(one.written, one.key)
        if isinstance(one.written, str):
            if size is None or one.key.unit == 1:
                yield from _odd_numbers(value, (one.name,))
            continue
        yield from _odd_numbers(value, (one.name,))
        if "bytes" in one.name and size is not None and size.error:
            yield f"{one.name} is {one.written}, which is megabytes, not bytes"


def _odd_numbers(value: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if key not in value:
            continue
        entry = value[key]
        if entry == 0 or entry is None or entry == "":
            yield f"{key} is {json.dumps(entry)}"
        elif isinstance(entry, str):
            kind = "a placeholder" if PLACEHOLDER.search(entry) else "text instead of a number"
            yield f"{key} is {entry!r}, {kind}"
        elif isinstance(entry, bool | list | dict):
            yield f"{key} is a {type(entry).__name__}, not a number"


def _number(value: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    for key in keys:
        entry = value.get(key)
        number = plausible(entry)
        if number is not None and (number or isinstance(entry, str)):
            return number
    return None
