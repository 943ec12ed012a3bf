"""Parses the log of `packer train`, as written by packer.train.log_line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

COUNT = r"([\d,]+)"
START = re.compile(rf"{COUNT} parameters, seed (\d+), {COUNT} training tokens")
STEP = re.compile(rf"step {COUNT}/{COUNT}  ")
BEST = re.compile(
    rf"best: (\w+), .*, {COUNT} bytes \+ code {COUNT} = {COUNT}, "
    r"(\d+\.\d+) bits per byte, (\d+\.\d+) nats a token through the file$"
)
TIMES = re.compile(r"seconds: (.+)$")
PART = re.compile(r"([a-z]+) (\d+\.\d+)")
SCORE_NAME = "through the file"


@dataclass(frozen=True)
class OwnScore:
    """The score of the best average through its file; digits: of the bits per byte as printed."""

    nats: float
    bpb: float
    digits: int


def parse_own(lines: Iterable[str]) -> tuple[dict[str, Any], OwnScore | None]:
    """(facts by their names in TrainingLog, the score or None). The log of a resumed run has lines
    of several starts: the last line of each kind counts.
    """
    facts: dict[str, Any] = {}
    score = None
    for line in lines:
        if match := START.match(line):
            facts |= {"parameters": _integer(match[1]), "seed": int(match[2])}
        elif match := STEP.match(line):
            facts |= {"step": _integer(match[1]), "steps": _integer(match[2])}
        elif match := TIMES.match(line):
            facts |= _times(match[1])
        elif match := BEST.match(line):
            facts |= {
                "models": ((match[1], _integer(match[2])),),
                "code_bytes": _integer(match[3]),
                "totals": ((match[1], _integer(match[4])),),
            }
            score = OwnScore(float(match[6]), float(match[5]), len(match[5].partition(".")[2]))
    return facts, score


def _times(text: str) -> dict[str, Any]:
    """Seconds of the ledger's parts that count against a budget."""
    parts = {name: float(seconds) for name, seconds in PART.findall(text)}
    facts: dict[str, Any] = {"train_seconds": parts.get("training", 0.0)}
    if "calibration" in parts:
        facts |= {"calibrated": True, "calibration_seconds": parts["calibration"]}
    if "evaluation" in parts:
        facts["eval_seconds"] = parts["evaluation"]
    return facts


def _integer(text: str) -> int:
    return int(text.replace(",", ""))
