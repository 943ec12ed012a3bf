"""Checks the seeds of a submission, and the significance of a record in nats."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.folder import Submission
from packer.submission.headline import headline
from packer.submission.log_copies import EXACT_DIGITS, exact_scores

GAIN_NATS = 0.005
P_LIMIT = 0.01
MAX_SEEDS = 30
SHOWN_COPIES = 3
BPB_GAIN = re.compile(
    r"(?:improv|beat|gain|better|lower|record|sota|threshold)[^.\n]{0,80}?0?\.00\d+ ?(?:val_)?bpb",
    re.IGNORECASE,
)
REPLICATED = re.compile(r"replicat|reproduc|re-?ran|our (?:own )?baseline", re.IGNORECASE)


def seeds(submission: Submission, options: Options) -> Finding | None:
    """There are logs of three different seeds, trained alike, and they are the claimed ones."""
    logs = [log for log in submission.logs if log.scores or log.totals]
    if not logs:
        silent = f": {'; '.join(submission.silent_logs)}" if submission.silent_logs else ""
        return unknown("seeds", f"no log has a score or a size{silent}")
    points: list[Point] = []
    logs_of = Counter(str(log.seed) for log in logs if log.seed is not None)
    known = ", ".join(sorted(logs_of)) or "none"
    count = len(logs_of) or len(logs)
    if count < 3:
        text = f"{count} seed{'s have' if count > 1 else ' has a'} log{'s' if count > 1 else ''}"
        points.append(Point(Status.WARN, f"{text} ({known}); records need three"))
    for seed, times in logs_of.items():
        if times > 1:
            points.append(Point(Status.WARN, f"seed {seed} has {times} logs; say which one counts"))
    claimed = set(submission.claims.seeds) if submission.claims else set()
    missing = sorted(claimed - set(logs_of))
    if claimed and missing and logs_of:
        text = f"submission.json names seeds {', '.join(sorted(claimed))}; logs are of {known}"
        points.append(Point(Status.FAIL, text))
    points += [Point(Status.PASS, text) for text in _copies(submission.copies)]
    points += _same_numbers(submission)
    points += _same_training(submission)
    return verdict("seeds", points, f"seeds {known}, each with its own log")


def _copies(copies: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each copy of a log, or one with their number and the first three."""
    lines = [f"{one} is a copy of {log}" for one, log in copies[:SHOWN_COPIES]]
    more = len(copies) - len(lines)
    return lines if not more else [f"{len(copies):,} logs are copies: {'; '.join(lines)}; ..."]


def _same_numbers(submission: Submission) -> list[Point]:
    """Fails if two seeds have the same score to eight decimals: one log is a copy."""
    seen: dict[tuple[float, float], str] = {}
    for log in submission.logs:
        for score in sorted(exact_scores(log)):
            other = seen.setdefault(score, log.name)
            if other != log.name:
                text = f"{log.name} and {other} have the same score {score[1]} to the last digit"
                return [Point(Status.FAIL, text)]
    return []


def _same_training(submission: Submission) -> list[Point]:
    """Warns if runs stop after different numbers of steps; fails if their sizes differ."""
    logs = [log for log in submission.logs if log.step]
    if len(logs) < 2:
        return []
    low = min(logs, key=lambda log: log.step or 0)
    high = max(logs, key=lambda log: log.step or 0)
    if (high.step or 0) > 1.1 * (low.step or 0):
        text = f"{low.name} stops at step {low.step:,} and {high.name} at {high.step:,}"
        return [Point(Status.WARN, text)]
    sizes = {log.parameters for log in submission.logs if log.parameters is not None}
    if len(sizes) > 1:
        spelled = ", ".join(f"{size:,}" for size in sorted(sizes))
        return [Point(Status.FAIL, f"the runs are of different models: {spelled} parameters")]
    return []


def record(submission: Submission, options: Options) -> Finding | None:
    """The runs beat the record by at least 0.005 nats, with p < 0.01."""
    if not options.sota_nats:
        return unknown("record", "no record to beat was given (--sota-nats)")
    best = headline(submission)
    every = [score.nats for score in best.by_log.values()] if best else _claimed_nats(submission)
    nats = _distinct(every)
    if not nats:
        return unknown("record", "no log has a score after quantization")
    points = [_against(nats, options.sota_nats, "the record")]
    if len(nats) < len(every):
        text = f"{len(every) - len(nats)} equal losses are copies and count once"
        points.append(Point(Status.PASS, text))
    if best is None:
        points.append(Point(Status.UNKNOWN, "these losses are submission.json's: no log has them"))
    if options.replicated_nats:
        points.append(_against(nats, options.replicated_nats, "the baseline as replicated"))
    elif submission.readme and REPLICATED.search(submission.readme):
        text = "README.md mentions a replicated baseline: give its nats (--replicated-nats)"
        points.append(Point(Status.UNKNOWN, text))
    return verdict("record", points, points[0].text)


def _distinct(nats: Sequence[float]) -> list[float]:
    """The losses without copies: runs with the same loss to many digits count once."""
    distinct: dict[float | tuple[int, float], float] = {}
    for number, value in enumerate(nats):
        exact = len(repr(value).partition(".")[2]) >= EXACT_DIGITS
        distinct.setdefault(value if exact else (number, value), value)
    return list(distinct.values())


def _claimed_nats(submission: Submission) -> list[float]:
    claims = submission.claims.seed_claims if submission.claims else ()
    return [claim.nats for claim in claims if claim.nats is not None]


def _against(nats: Sequence[float], baseline: Sequence[float], what: str) -> Point:
    gain = _mean(baseline) - _mean(nats)
    text = f"{gain:+.5f} nats against {what} ({len(nats)} runs, mean {_mean(nats):.5f})"
    if gain < GAIN_NATS:
        return Point(Status.FAIL, f"{text}: {GAIN_NATS} are needed")
    if len(nats) < 2:
        return Point(Status.UNKNOWN, f"{text}: one seed has no p")
    p, test = significance(nats, baseline)
    if p < P_LIMIT:
        return Point(Status.PASS, f"{text}, p = {p:.2g} that it is less than {GAIN_NATS} ({test})")
    needed = seeds_needed(nats, baseline)
    more = (
        f"about {needed - len(nats)} more seeds as good as these would do"
        if needed is not None
        else f"not even {MAX_SEEDS} seeds like these would do"
    )
    return Point(
        Status.FAIL,
        f"{text}, p = {p:.2g} that it is less than {GAIN_NATS} ({test}); p < {P_LIMIT} is needed, "
        f"{more}",
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def significance(nats: Sequence[float], baseline: Sequence[float]) -> tuple[float, str]:
    """(p, name of the test) of the hypothesis that the gain is below GAIN_NATS.

    Welch's two-sample test with the baseline's seeds, a one-sample test with its mean alone.
    """
    from scipy import stats

    if len(baseline) > 1:
        moved = [value - GAIN_NATS for value in baseline]
        if len(set(nats)) == 1 and len(set(baseline)) == 1:
            return (0.0 if _mean(nats) < _mean(moved) else 1.0), "no spread at all"
        result = stats.ttest_ind(nats, moved, equal_var=False, alternative="less")
        return float(result.pvalue), "Welch's t-test, one-sided"
    limit = baseline[0] - GAIN_NATS
    if len(set(nats)) == 1:
        return (0.0 if nats[0] < limit else 1.0), "no spread at all"
    result = stats.ttest_1samp(nats, limit, alternative="less")
    return float(result.pvalue), "one-sample t-test, one-sided"


def seeds_needed(nats: Sequence[float], baseline: Sequence[float]) -> int | None:
    """The number of seeds with this mean and spread needed for significance; None: over 30."""
    from scipy import stats

    mean, spread = _mean(nats), stats.tstd(nats)
    for count in range(len(nats) + 1, MAX_SEEDS + 1):
        if len(baseline) > 1:
            other = (_mean(baseline) - GAIN_NATS, stats.tstd(baseline), len(baseline))
            result = stats.ttest_ind_from_stats(
                mean, spread, count, *other, equal_var=False, alternative="less"
            )
            p = float(result.pvalue)
        else:
            t = (mean - baseline[0] + GAIN_NATS) / (spread / math.sqrt(count))
            p = float(stats.t.cdf(t, count - 1))
        if p < P_LIMIT:
            return count
    return None


def gain_unit(submission: Submission, options: Options) -> Finding | None:
    """The README states its gain in nats, not in bits per byte."""
    stated = BPB_GAIN.search(submission.readme or "")
    if stated is None:
        return None
    best = headline(submission)
    text = f"README.md states a gain in bpb ({stated[0].strip()[:90]!r}); the rule is in nats"
    if best is not None:
        ratio = best.mean_nats / best.mean_bpb
        text += f": here {GAIN_NATS} nats are {GAIN_NATS / ratio:.5f} bpb"
    return Finding("gain-unit", Status.WARN, text)


RULES: tuple[Rule, ...] = (seeds, record, gain_unit)
