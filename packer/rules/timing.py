"""Seconds of training, calibration included, and of evaluation."""

from __future__ import annotations

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.folder import Submission
from packer.submission.training_log import TrainingLog

# The loop looks at the clock between steps, so the last one may end a little late.
GRACE_SECONDS = 1.0


def train_time(submission: Submission, options: Options) -> Finding:
    """Training, and calibration that reads data, end within the limit."""
    trained = [log for log in submission.logs if log.step is not None or log.train_seconds]
    points = [_trained(log, options.train_seconds) for log in trained]
    claims = submission.claims
    if not any(point.status is not Status.UNKNOWN for point in points) and claims is not None:
        if claims.train_seconds is not None and claims.train_seconds > options.train_seconds + 1:
            text = f"submission.json says {claims.train_seconds:g} s of training"
            points.append(Point(Status.FAIL, text))
        elif claims.train_seconds is not None:
            text = f"submission.json says {claims.train_seconds:g} s, and no log confirms it"
            points.append(Point(Status.UNKNOWN, text))
    if not points:
        return unknown("train-time", "no log tells the training time")
    return verdict("train-time", points, f"every run trains at most {options.train_seconds:g} s")


def _trained(log: TrainingLog, limit: float) -> Point:
    if log.train_seconds is None:
        return Point(Status.UNKNOWN, f"{log.name}: no training time")
    text = f"{log.name}: trained {log.train_seconds:.1f} s"
    total = log.train_seconds
    if log.calibrated and log.own_text:
        text += ", calibrated on its own text, which is not charged"
    elif log.calibrated and log.calibration_seconds is None:
        if total <= limit:
            return Point(Status.UNKNOWN, f"{text}, calibrated for an unknown time")
    elif log.calibration_seconds is not None:
        total += log.calibration_seconds
        text += f" + calibration {log.calibration_seconds:.1f} s = {total:.1f} s"
    if total > limit + GRACE_SECONDS:
        why = " (what makes the artifact from data belongs to training)" if log.calibrated else ""
        return Point(Status.FAIL, f"{text}: {total - limit:.1f} s over{why}")
    if total > limit:
        return Point(Status.WARN, f"{text}: {1e3 * (total - limit):.0f} ms over, the last step's")
    return Point(Status.PASS, text)


def eval_time(submission: Submission, options: Options) -> Finding:
    """The evaluation that gives the score ends within its own limit."""
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
        points.append(Point(Status.FAIL if seconds > options.eval_seconds else Status.PASS, text))
    claims = submission.claims
    if claims is not None and (claims.eval_seconds or 0.0) > options.eval_seconds:
        text = f"submission.json says {claims.eval_seconds:g} s of evaluation"
        points.append(Point(Status.FAIL, text))
    if not points:
        return unknown("eval-time", "no log tells the evaluation time")
    return verdict("eval-time", points, f"evaluations take at most {options.eval_seconds:g} s")


RULES: tuple[Rule, ...] = (train_time, eval_time)
