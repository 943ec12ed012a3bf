"""Finds the submission's score among the many of its logs: the one that it claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packer.submission.account import accounts
from packer.submission.folder import Submission
from packer.submission.training_log import LoggedScore

TOLERANCE = 6e-5  # four printed decimals


@dataclass(frozen=True)
class Headline:
    """name: of the metric. by_log: its score in each log that has it. claimed: "mean" or "single",
    whether submission.json claims the mean of these or one of them; None if neither.
    """

    name: str
    by_log: Mapping[str, LoggedScore]
    claimed: str | None

    @property
    def mean_bpb(self) -> float:
        return sum(score.bpb for score in self.by_log.values()) / len(self.by_log)

    @property
    def mean_nats(self) -> float:
        return sum(score.nats for score in self.by_log.values()) / len(self.by_log)


def headline(submission: Submission) -> Headline | None:
    """The metric whose mean, or else whose single value, is the claimed bpb; else the last one.

    Scripts report the last evaluation of the quantized model in a log.
    """
    by_name: dict[str, dict[str, LoggedScore]] = {}
    replaced = {run.name for run in accounts(submission) if run.superseded is not None}
    for log in submission.logs:
        if log.name in replaced and len(replaced) < len(submission.logs):
            continue
        for score in log.quantized_scores:
            by_name.setdefault(score.name, {})[log.name] = score
    if not by_name:
        return None
    # The last names first, and those with eight decimals before those with four.
    names = list(reversed(by_name))
    names.sort(key=lambda name: "exact" not in name)
    claim = submission.claims.bpb if submission.claims else None
    if claim is not None:
        for name in names:
            if abs(Headline(name, by_name[name], None).mean_bpb - claim) < TOLERANCE:
                return Headline(name, by_name[name], "mean")
        for name in names:
            if any(abs(score.bpb - claim) < TOLERANCE for score in by_name[name].values()):
                return Headline(name, by_name[name], "single")
    last = list(by_name)[-1]
    exact = next((n for n in names if "exact" in n and n.startswith(last)), last)
    return Headline(exact, by_name[exact], None)
