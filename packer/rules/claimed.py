"""Compares submission.json with the logs, the files and itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.rules.timing import eval_time, train_time
from packer.submission.account import RunAccount, accounts, largest_total
from packer.submission.claimed_seeds import SeedClaim
from packer.submission.claimed_sizes import ClaimedNumber
from packer.submission.claims import Claims
from packer.submission.folder import Submission
from packer.submission.headline import TOLERANCE, headline
from packer.submission.training_log import TrainingLog

MIB = 2**20 / 10**6
MIB_SLACK_BYTES = 6_000  # a number in MiB is rarely written to the byte


def json_valid(submission: Submission, options: Options) -> Finding | None:
    """submission.json is there, is JSON, and holds numbers where numbers belong."""
    claims = submission.claims
    if claims is None:
        return Finding("json", Status.FAIL, "there is no submission.json")
    if claims.problem is not None:
        return Finding("json", Status.FAIL, f"submission.json: {claims.problem}")
    points = [Point(Status.WARN, text) for text in claims.odd]
    if claims.bpb is None:
        points.append(Point(Status.FAIL, "it claims no val_bpb"))
    return verdict("json", points, "submission.json is valid and holds numbers")


def json_total(submission: Submission, options: Options) -> Finding | None:
    """The claimed total is that of the largest run."""
    claims = submission.claims
    if claims is None or claims.problem is not None:
        return None
    claim = claims.total or _largest_of_seeds(claims)
    if claim is None:
        return Finding("json-total", Status.WARN, "submission.json claims no total (bytes_total)")
    runs = accounts(submission)
    totals = _totals(runs)
    if not totals:
        return _without_runs(claim, claims, submission)
    points = [_explained(claim, runs, totals)]
    smallest = min(totals)
    if claim.value <= options.cap_bytes < smallest and points[0].status is Status.FAIL:
        text = f"it claims to fit; the smallest total of any run is {smallest:,}"
        points.append(Point(Status.FAIL, text))
    if claim.error:
        text = f"{claim.key} is {claim.written!r}; write the bytes"
        points.append(Point(Status.WARN, text))
    return verdict("json-total", points, points[0].text)


def _largest_of_seeds(claims: Claims) -> ClaimedNumber | None:
    """The largest size claimed of a seed, where every seed has one."""
    sizes = [seed.size_bytes for seed in claims.seed_claims if seed.size_bytes is not None]
    if not sizes or len(sizes) < len(claims.seed_claims):
        return None
    return ClaimedNumber("the largest of the seeds,", max(sizes), 0.0, str(max(sizes)))


def _without_runs(claim: ClaimedNumber, claims: Claims, submission: Submission) -> Finding:
    """The claimed total against the claimed model and the code in the folder."""
    claimed, code = f"{claim.key} {claim.written}", submission.code_bytes
    part = claims.model or claims.artifact
    if part is None or part == claim or claim.error or part.error or claims.total is None:
        return unknown("json-total", f"{claimed}: no log or artifact to compare it with")
    model, key = round(part.value), part.key
    left = round(claim.value) - model
    if left < 0:
        text = f"{claimed} is less than the claimed model, {key} {model:,}"
        return Finding("json-total", Status.FAIL, text)
    alike = {code, submission.own_code_bytes} | ({0} if claims.model is None else set())
    if code is None or left in alike:
        return unknown("json-total", f"{claimed}: no log or artifact to compare it with")
    return Finding(
        "json-total",
        Status.WARN,
        f"{claimed} leaves {left:,} bytes for code beside {key} {model:,}, and the code here is "
        f"{code:,}: together {model + code:,}. It is stale, or counts a packed copy of the code "
        "that is not shipped",
    )


def _totals(runs: tuple[RunAccount, ...]) -> dict[int, str]:
    """Every total that a claim may mean -> the name of its run."""
    totals: dict[int, str] = {}
    for run in runs:
        for total in (run.with_own_code, run.as_logged, run.as_shipped):
            if total is not None:
                totals[total] = run.name
    return totals


def _explained(claim: ClaimedNumber, runs: tuple[RunAccount, ...], totals: dict[int, str]) -> Point:
    """Which known number the claim equals, and whether that is the right one."""
    claimed = f"{claim.key} {claim.written}"
    largest = max((_worst(run) for run in runs if run.superseded is None), default=0)
    equal = [total for total in totals if claim.means(total)]
    if equal:
        return _of_a_run(claimed, max(equal), largest, runs)
    models = {run.model_bytes: run.name for run in runs if run.model_bytes is not None}
    model = next((size for size in models if claim.means(size)), None)
    if model is not None:
        text = f"{claimed} is the model of {models[model]} alone; with code it is {largest:,}"
        return Point(Status.FAIL, text)
    slack = max(claim.error * MIB, MIB_SLACK_BYTES)
    if any(abs(claim.value * MIB - total) <= slack for total in totals):
        return Point(Status.FAIL, f"{claimed} counts MiB as MB; in bytes it is {largest:,}")
    for kind in ([run.as_logged for run in runs], [run.as_shipped for run in runs]):
        sizes = [size for size in kind if size is not None]
        if sizes and min(sizes) < claim.value < max(sizes):
            mean = abs(sum(sizes) / len(sizes) - claim.value) < 1
            text = f"{claimed} is {'the mean' if mean else 'between the totals'} of the runs"
            return Point(Status.WARN, f"{text}; the largest is {largest:,}")
    known = ", ".join(f"{total:,}" for total in sorted(totals))
    text = f"{claimed} matches no run ({known}): stale, or of files that are not here"
    return Point(Status.FAIL, text)


def _of_a_run(claimed: str, total: int, largest: int, runs: tuple[RunAccount, ...]) -> Point:
    """A claim that equals a run's total, as logged or as shipped."""
    if total >= largest:
        return Point(Status.PASS, f"{claimed} is the largest total")
    of_it = [run for run in runs if total in (run.as_logged, run.as_shipped)]
    if not of_it:
        text = f"{claimed} counts the script without the files that it runs; with them the largest"
        return Point(Status.FAIL, f"{text} is {largest:,}")
    if any(_worst(run) == largest for run in of_it):
        return Point(Status.PASS, f"{claimed} is the total of the largest run")
    text = f"{claimed} is the total of {of_it[0].name}; the largest is {largest:,}"
    return Point(Status.WARN, text)


def _worst(run: RunAccount) -> int:
    return max(run.as_logged or 0, run.as_shipped or 0)


def json_parts(submission: Submission, options: Options) -> Finding | None:
    """Claimed code and model bytes are those of a log or a file."""
    claims = submission.claims
    if claims is None:
        return None
    runs = accounts(submission)
    codes = {run.logged_code for run in runs}
    codes |= {submission.code_bytes, submission.own_code_bytes}
    codes |= {*(log.raw_code_bytes for log in submission.logs)}
    models = {run.model_bytes for run in runs}
    models |= {size for log in submission.logs for _, size in log.models}
    points = [
        *_part(claims.code, codes, "code"),
        *_part(claims.model, models, "model"),
        *_parts_and_total(claims),
    ]
    if not points:
        return None
    return verdict("json-parts", points, "code and model are as logged or shipped")


def _part(claim: ClaimedNumber | None, sizes: set[int | None], what: str) -> Iterator[Point]:
    known = sorted(size for size in sizes if size is not None)
    if claim is None or not known:
        return
    claimed = f"{claim.key} {claim.written}"
    if any(claim.means(size) for size in known):
        yield Point(Status.PASS, f"{claimed} is as found")
    else:
        listed = ", ".join(f"{size:,}" for size in known)
        yield Point(Status.FAIL, f"{claimed} is no {what} of any log or file ({listed})")


def _parts_and_total(claims: Claims) -> Iterator[Point]:
    parts = (claims.code, claims.model, claims.total)
    if claims.code is None or claims.model is None or claims.total is None:
        return
    if any(part is not None and part.error for part in parts):
        return
    total = claims.code.value + claims.model.value
    if total != claims.total.value:
        text = f"{claims.code.key} + {claims.model.key} is {total:,.0f}, not {claims.total.written}"
        yield Point(Status.FAIL, text)


def json_seeds(submission: Submission, options: Options) -> Finding | None:
    """The claims for each seed in submission.json agree with that seed's log."""
    claims = submission.claims
    if claims is None or not claims.seed_claims:
        return None
    points: list[Point] = []
    for claim in claims.seed_claims:
        logs = [log for log in submission.logs if str(log.seed) == claim.seed]
        if logs:
            points += [*_seed_size(claim, submission), *_seed_run(claim, logs)]
        else:
            points.append(Point(Status.UNKNOWN, f"seed {claim.seed}: there is no log of it"))
    return verdict("json-seeds", points, "every seed is as logged")


def _seed_size(claim: SeedClaim, submission: Submission) -> Iterator[Point]:
    runs = accounts(submission)
    later = {run.superseded for run in runs if str(run.seed) == claim.seed}
    own = [run for run in runs if str(run.seed) == claim.seed or run.name in later]
    known = {size for run in own for size in (run.as_logged, run.as_shipped, run.model_bytes)}
    sizes = sorted(size for size in known if size is not None)
    if claim.size_bytes is None or not sizes or claim.size_bytes in sizes:
        return
    equal = [run for run in runs if claim.size_bytes in (run.as_logged, run.as_shipped)]
    others = [run.seed for run in equal if run.seed is not None]
    whose = f", it is seed {others[0]}'s" if others else ""
    logged = ", ".join(f"{size:,}" for size in sizes)
    text = f"seed {claim.seed}: claims {claim.size_bytes:,}, logged {logged}{whose}"
    yield Point(Status.FAIL, text)


def _seed_run(claim: SeedClaim, logs: list[TrainingLog]) -> Iterator[Point]:
    scores = [score.bpb for log in logs for score in log.quantized_scores]
    if claim.bpb is not None and scores:
        off, near = min((abs(bpb - claim.bpb), bpb) for bpb in scores)
        text = f"seed {claim.seed}: claims {claim.bpb}, the nearest logged score is {near}"
        yield Point(Status.PASS if off < TOLERANCE else Status.FAIL, text)
    steps = {log.step for log in logs if log.step is not None}
    if claim.steps is not None and steps and claim.steps not in steps:
        text = f"seed {claim.seed}: claims {claim.steps} steps, logged {sorted(steps)}"
        yield Point(Status.FAIL, text)


def compliance(submission: Submission, options: Options) -> Finding | None:
    """Compliance flags in submission.json agree with files and logs."""
    claims = submission.claims
    if claims is None or not claims.flags:
        return None
    total = largest_total(submission)
    of_a_record = replace(submission, unlimited=None)
    facts: dict[str, bool | None] = {
        "artifact_under_16mb": None if total is None else total <= options.cap_bytes,
        "train_under_600s": _holds(train_time(of_a_record, options)),
        "eval_under_600s": _holds(eval_time(of_a_record, options)),
        "three_seeds": len({log.seed for log in submission.logs}) >= 3 if submission.logs else None,
    }
    points = []
    for flag, claimed in claims.flags.items():
        fact = facts.get(flag)
        if flag not in facts:
            continue
        if fact is None:
            points.append(Point(Status.UNKNOWN, f"{flag}: {str(claimed).lower()}, no evidence"))
        elif claimed == fact:
            points.append(Point(Status.PASS, f"{flag}: {str(claimed).lower()}, confirmed"))
        else:
            status = Status.FAIL if claimed else Status.WARN
            text = f"{flag}: {str(claimed).lower()} is claimed, the files show {str(fact).lower()}"
            points.append(Point(status, text))
    return verdict("compliance", points, "compliance flags are true") if points else None


def _holds(finding: Finding) -> bool | None:
    return None if finding.status is Status.UNKNOWN else finding.status is not Status.FAIL


def score(submission: Submission, options: Options) -> Finding | None:
    """The claimed bits per byte are the mean, or one seed, of a logged score."""
    claims = submission.claims
    if claims is None or claims.bpb is None:
        return None
    best = headline(submission)
    if best is None:
        return unknown("score", f"val_bpb {claims.bpb}: no log has a score after quantization")
    claimed = f"val_bpb {claims.bpb}"
    if best.claimed == "mean":
        runs = f"{len(best.by_log)} logs" if len(best.by_log) > 1 else next(iter(best.by_log))
        return Finding("score", Status.PASS, f"{claimed} is {best.name} of {runs}")
    if best.claimed == "single":
        status = Status.WARN if len(best.by_log) > 1 else Status.PASS
        text = f"{claimed} is one seed's {best.name}; their mean is {best.mean_bpb:.6f}"
        return Finding("score", status, text)
    before = [s for log in submission.logs for s in log.scores if not s.quantized]
    if any(abs(one.bpb - claims.bpb) < TOLERANCE for one in before):
        text = f"{claimed} is a score before quantization; {best.name} is {best.mean_bpb:.6f}"
        return Finding("score", Status.FAIL, text)
    text = f"{claimed} is no logged score; the last, {best.name}, is {best.mean_bpb:.6f}"
    return Finding("score", Status.FAIL, text)


RULES: tuple[Rule, ...] = (
    json_valid,
    json_total,
    json_parts,
    json_seeds,
    score,
    compliance,
)
