"""The finding of a rule: a verdict with evidence that a reader can look up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from packer.submission.contest import CAP_BYTES, EVAL_SECONDS, TRAIN_SECONDS
from packer.submission.folder import Submission


class Status(str, Enum):
    """FAIL: a rule is broken. WARN: a person should look. UNKNOWN: no evidence, so no pass."""

    PASS = "pass"
    WARN = "warn"
    UNKNOWN = "unknown"
    FAIL = "fail"


SEVERITY = {Status.PASS: 0, Status.UNKNOWN: 1, Status.WARN: 2, Status.FAIL: 3}


@dataclass(frozen=True)
class Finding:
    """One rule's verdict in a sentence. evidence: lines that name files and numbers."""

    rule: str
    status: Status
    verdict: str
    evidence: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "status": self.status.value,
            "verdict": self.verdict,
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True)
class Options:
    """Options of the checker. sota_nats: the record to beat, its seeds or their mean.
    replicated_nats: the same baseline as replicated by the author.
    """

    cap_bytes: int = CAP_BYTES
    train_seconds: float = TRAIN_SECONDS
    eval_seconds: float = EVAL_SECONDS
    sota_nats: tuple[float, ...] = ()
    replicated_nats: tuple[float, ...] = ()


Rule = Callable[[Submission, Options], Finding | None]


@dataclass(frozen=True)
class Point:
    """One observation towards a verdict."""

    status: Status
    text: str


def verdict(rule: str, points: Iterable[Point], passed: str) -> Finding:
    """The finding of the worst observation; `passed` if none is worse than PASS."""
    points = list(points)
    worst = max(points, key=lambda point: SEVERITY[point.status], default=None)
    if worst is None or worst.status is Status.PASS:
        return Finding(rule, Status.PASS, passed, tuple(point.text for point in points))
    rest = tuple(point.text for point in points if point is not worst)
    return Finding(rule, worst.status, worst.text, rest)


def unknown(rule: str, text: str) -> Finding:
    return Finding(rule, Status.UNKNOWN, text)
