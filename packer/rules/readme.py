"""Compares the README with submission.json, logs and files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.account import accounts
from packer.submission.contest import CAP_BYTES
from packer.submission.folder import Submission

README_BYTES = re.compile(r"(?<![\d.,])(1[0-9](?:[,_]?\d{3}){2})(?![\d.,]*\d)")
README_BPB = re.compile(r"(?<![\d.])([0-3]\.\d{3,10})(?!\d)")


def readme(submission: Submission, options: Options) -> Finding | None:
    """The numbers in the README are those of submission.json, logs and files."""
    text = submission.readme
    if text is None:
        return Finding("readme", Status.FAIL, "there is no README.md")
    points = [*_readme_sizes(submission, text), *_readme_bpb(submission, text)]
    if not points:
        return unknown("readme", "README.md names no total and no score")
    return verdict("readme", points, "README.md names the numbers of logs and files")


def _readme_sizes(submission: Submission, text: str) -> Iterator[Point]:
    named = {int(match.replace(",", "").replace("_", "")) for match in README_BYTES.findall(text)}
    known: set[int] = set()
    for run in accounts(submission):
        sizes = (run.as_logged, run.as_shipped, run.model_bytes)
        known |= {size for size in sizes if size is not None}
    for log in submission.logs:
        known |= {size for _, size in (*log.models, *log.totals)}
        known |= {size for size in (log.parameters, log.checkpoint_bytes) if size is not None}
    claim = submission.claims.total if submission.claims else None
    named = {size for size in named if 12_000_000 < size < 20_000_000 and size != CAP_BYTES}
    if not named or not known:
        return
    matching = sorted(named & known)
    strange = sorted(named - known)
    if matching:
        listed = ", ".join(f"{size:,}" for size in matching)
        yield Point(Status.PASS, f"README.md names {listed}, as logged or shipped")
    elif claim is not None and any(claim.means(size) for size in strange):
        yield Point(Status.WARN, f"README.md and submission.json name {claim.written}; no run does")
    else:
        listed = ", ".join(f"{size:,}" for size in strange)
        yield Point(Status.WARN, f"README.md names {listed}, which no log, file or json has")


def _readme_bpb(submission: Submission, text: str) -> Iterator[Point]:
    claim = submission.claims.bpb if submission.claims else None
    if claim is None:
        return
    for written in README_BPB.findall(text):
        if abs(float(written) - claim) <= 0.51 * 10.0 ** -len(written.partition(".")[2]):
            yield Point(Status.PASS, f"README.md names the claimed {claim} bpb as {written}")
            return
    if README_BPB.search(text):
        yield Point(Status.WARN, f"README.md never names the claimed {claim} bpb")


RULES: tuple[Rule, ...] = (readme,)
