"""The rules of `packer check`, in the order of the report; docs/checker.md describes each."""

from __future__ import annotations

from packer.rules import claimed, evaluation, measured, readme, record, sizes, sources, timing
from packer.rules.finding import Finding, Options, Rule, Status
from packer.submission.folder import Submission

RULES: tuple[Rule, ...] = (
    *sizes.RULES,
    *claimed.RULES,
    *readme.RULES,
    *measured.RULES,
    *timing.RULES,
    *evaluation.RULES,
    *record.RULES,
    *sources.RULES,
)

__all__ = ["RULES", "Finding", "Options", "Rule", "Status", "check"]


def check(submission: Submission, options: Options | None = None) -> tuple[Finding, ...]:
    """The finding of every rule that applies, in the order of RULES."""
    options = options or Options()
    findings = (rule(submission, options) for rule in RULES)
    return tuple(finding for finding in findings if finding is not None)
