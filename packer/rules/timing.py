"""Checks the seconds of training, calibration included, and of evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.claims import Claims
from packer.submission.folder import Submission
from packer.submission.track import other_hardware
from packer.submission.training_log import TrainingLog

# The loop checks the clock between steps, so the last step may end a little late.
GRACE_SECONDS = 1.0
CHARGED = "what makes the artifact from data belongs to training"


def train_time(submission: Submission, options: Options) -> Finding:
    """Training together with calibration that reads data ends within the limit."""
    trained = [log for log in submission.logs if log.step is not None or log.train_seconds]
    claims = submission.claims
    points = [_elsewhere(_trained(log, options.train_seconds), log, claims) for log in trained]
    if not any(point.status is not Status.UNKNOWN for point in points) and claims is not None:
        if claims.train_seconds is not None and claims.train_seconds > options.train_seconds + 1:
            text = f"submission.json says {claims.train_seconds:g} s of training"
            points.append(_elsewhere(Point(Status.FAIL, text), None, claims))
        elif claims.train_seconds is not None:
            text = f"submission.json says {claims.train_seconds:g} s, and no log confirms it"
            points.append(Point(Status.UNKNOWN, text))
    if not points:
        return unknown("train-time", "no log has the training time")
    return _of_track(
        submission, "train-time", points, f"trains at most {options.train_seconds:g} s"
    )


def _trained(log: TrainingLog, limit: float) -> Point:
    if log.train_seconds is None:
        return Point(Status.UNKNOWN, f"{log.name}: no training time")
    text = f"{log.name}: trained {log.train_seconds:.1f} s"
    total = log.train_seconds
    if log.calibrated and log.own_text:
        text += ", calibrated on its own or random text, which is not charged"
    elif log.calibrated and log.calibration_seconds is None:
        if total <= limit:
            return Point(Status.UNKNOWN, f"{text}, calibrated for an unknown time")
        line = log.calibration_data or log.calibration_line
        if line is not None:
            text += f", then calibrated for an unknown time ({line[:100]!r})"
        if log.calibration_data is not None:
            return Point(Status.FAIL, f"{text}: {CHARGED}")
        if line is not None and total <= limit + GRACE_SECONDS:
            return Point(Status.WARN, f"{text}, which does not say on what: {CHARGED}")
    elif log.calibration_seconds is not None:
        total += log.calibration_seconds
        text += f" + calibration {log.calibration_seconds:.1f} s = {total:.1f} s"
    if total > limit + GRACE_SECONDS:
        why = f" ({CHARGED})" if log.calibrated else ""
        return Point(Status.FAIL, f"{text}: {total - limit:.1f} s over{why}")
    if total > limit:
        return Point(Status.WARN, f"{text}: {1e3 * (total - limit):.0f} ms over, the last step's")
    return Point(Status.PASS, text)


def eval_time(submission: Submission, options: Options) -> Finding:
    """The evaluation of the score ends within its own limit."""
    points = []
    for log in submission.logs:
        timed = {s.name: s.seconds for s in log.quantized_scores if s.seconds is not None}
        if log.eval_seconds is not None:
            timed["the whole evaluation"] = log.eval_seconds
        if not timed:
            if log.quantized_scores:
                points.append(Point(Status.UNKNOWN, f"{log.name}: no evaluation time"))
            continue
        longest, seconds = max(timed.items(), key=lambda one: one[1])
        text = f"{log.name}: {longest} took {seconds:.1f} s"
        late = Status.FAIL if seconds > options.eval_seconds else Status.PASS
        points.append(_elsewhere(Point(late, text), log, submission.claims))
    claims = submission.claims
    if claims is not None and (claims.eval_seconds or 0.0) > options.eval_seconds:
        text = f"submission.json says {claims.eval_seconds:g} s of evaluation"
        points.append(_elsewhere(Point(Status.FAIL, text), None, claims))
    if not points:
        return unknown("eval-time", "no log has the evaluation time")
    return _of_track(submission, "eval-time", points, f"takes at most {options.eval_seconds:g} s")


def _elsewhere(point: Point, log: TrainingLog | None, claims: Claims | None) -> Point:
    """A failure as unknown if the run was on another machine than the contest's eight H100."""
    other = other_hardware(log, claims)
    if other is None or point.status is not Status.FAIL:
        return point
    text = f"{point.text}; but it ran on {other}, and the limit is for 8 H100"
    return Point(Status.UNKNOWN, text)


def _of_track(submission: Submission, rule: str, points: Sequence[Point], passed: str) -> Finding:
    """The verdict; on a track without time limits it is reported but never a failure."""
    late = any(point.status in (Status.FAIL, Status.WARN) for point in points)
    if submission.unlimited is None or not late:
        return verdict(rule, points, f"every run {passed}")
    text = f"no limit of the record track holds here, by {submission.unlimited}"
    status = Status.PASS if rule == "train-time" else Status.UNKNOWN
    return Finding(rule, status, text, tuple(point.text for point in points))


RULES: tuple[Rule, ...] = (train_time, eval_time)
