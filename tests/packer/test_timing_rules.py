"""What `packer check` says of seconds: of training with its calibration, and of evaluation."""

from __future__ import annotations

import pytest

from packer.rules.finding import Options, Status
from packer.rules.timing import eval_time, train_time
from packer.submission.claims import Claims
from packer.submission.folder import Submission
from packer.submission.training_log import LoggedScore, TrainingLog

LIMITS = Options(train_seconds=600.0, eval_seconds=60.0)


def log(**facts: object) -> TrainingLog:
    return TrainingLog("a.log", step=10, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "status", "says"),
    [
        ({"train_seconds": 599.0}, Status.PASS, "at most 600 s"),
        ({"train_seconds": 600.4}, Status.WARN, "400 ms over, the last step's"),
        ({"train_seconds": 605.0}, Status.FAIL, "5.0 s over"),
        (
            {"train_seconds": 598.0, "calibrated": True, "calibration_seconds": 8.0},
            Status.FAIL,
            "598.0 s + calibration 8.0 s = 606.0 s: 6.0 s over (what makes the artifact from data",
        ),
        (
            {"train_seconds": 598.0, "calibrated": True},
            Status.UNKNOWN,
            "calibrated for an unknown time",
        ),
        (
            {"train_seconds": 598.0, "calibrated": True, "own_text": True},
            Status.PASS,
            "at most 600 s",
        ),
        ({}, Status.UNKNOWN, "no training time"),
    ],
)
def test_calibration_that_reads_data_counts_as_training(
    facts: dict[str, object], status: Status, says: str
) -> None:
    found = train_time(Submission("run", logs=(log(**facts),)), LIMITS)
    assert found.status is status
    assert says in " ".join((found.verdict, *found.evidence))


@pytest.mark.parametrize(
    ("seconds", "status", "says"),
    [
        (700.0, Status.FAIL, "submission.json says 700 s of training"),
        (580.0, Status.UNKNOWN, "says 580 s, and no log confirms it"),
    ],
)
def test_a_claim_is_not_believed_without_a_log(seconds: float, status: Status, says: str) -> None:
    found = train_time(Submission("run", claims=Claims(train_seconds=seconds)), LIMITS)
    assert found.status is status
    assert says in " ".join((found.verdict, *found.evidence))


def test_the_longest_evaluation_decides() -> None:
    scores = (
        LoggedScore("final_int6_roundtrip", 3.0, 1.2, 4, True, 20.0),
        LoggedScore("final_int6_sliding_window", 3.0, 1.2, 4, True, 75.0),
    )
    late = eval_time(Submission("run", logs=(log(scores=scores),)), LIMITS)
    assert late.status is Status.FAIL
    assert "sliding_window took 75.0 s" in " ".join((late.verdict, *late.evidence))
    whole = eval_time(Submission("run", logs=(log(eval_seconds=59.0),)), LIMITS)
    assert whole.status is Status.PASS
    claimed = eval_time(Submission("run", claims=Claims(eval_seconds=61.0)), LIMITS)
    assert claimed.status is Status.FAIL
    assert eval_time(Submission("run"), LIMITS).status is Status.UNKNOWN
    assert train_time(Submission("run"), LIMITS).status is Status.UNKNOWN
