"""Checks that bits per byte were counted right: the validation set, and bytes per token."""

from __future__ import annotations

import math
from collections.abc import Iterator

from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.folder import Submission
from packer.submission.training_log import LoggedScore, TrainingLog

# Bytes of the 50,000 validation documents, with slack for rounding and cut windows.
VAL_BYTES = 151_300_000
VAL_BYTES_SLACK = 0.015
# Bytes per token of the tokenizers of the contest, from printed pairs of nats and bits per byte.
BYTES_PER_TOKEN = {(1024, False): 2.442, (8192, False): 3.727, (8192, True): 3.157}
RATIO_SLACK = 0.01
PLAUSIBLE = (0.97, 4.6)  # bytes per token, from a byte vocabulary to 32,768 pieces
LEAKED_TRAIN_SHARDS = 1_499  # of a preparation that trains on most of the validation set


def bytes_per_token(score: LoggedScore) -> float:
    return score.nats / math.log(2) / score.bpb


def _rounding(score: LoggedScore) -> float:
    """The relative error of the ratio due to printed decimals."""
    return 0.6 * 10.0**-score.digits * (1 / score.bpb + 1 / score.nats)


def bpb(submission: Submission, options: Options) -> Finding | None:
    """nats / ln 2 / bpb is the same everywhere, and equals the tokenizer's bytes per token."""
    points: list[Point] = []
    for log in submission.logs:
        scores = [score for score in log.scores if score.bpb > 0 and score.digits >= 3]
        if scores:
            points += _ratios(log, scores)
    claims = submission.claims
    if claims is not None and claims.bpb and claims.nats:
        points += _claimed_ratio(submission, claims.nats, claims.bpb)
    if not points:
        return unknown("bytes-per-token", "no log or json gives both nats and bits per byte")
    return verdict("bytes-per-token", points, "nats and bits per byte agree in every pair")


def _ratios(log: TrainingLog, scores: list[LoggedScore]) -> Iterator[Point]:
    best = max(scores, key=lambda score: (score.digits, score.quantized))
    ratio = bytes_per_token(best)
    for score in scores:
        other = bytes_per_token(score)
        if abs(other / ratio - 1) > 0.003 + _rounding(score) + _rounding(best):
            yield Point(
                Status.FAIL,
                f"{log.name}: {score.name} has {other:.4f} bytes a token and {best.name} "
                f"{ratio:.4f}; one of them counts bytes wrong, or another set",
            )
            return
    yield _of_tokenizer(log, ratio, RATIO_SLACK + _rounding(best))


def _of_tokenizer(log: TrainingLog, ratio: float, slack: float) -> Point:
    """Compares the ratio with that of the log's tokenizer and of others with its vocabulary size: a
    log seldom says that its tokens have case operators or are bytes.
    """
    text = f"{log.name}: {ratio:.4f} bytes a token"
    expected = BYTES_PER_TOKEN.get((log.vocab_size or 0, log.case_operators))
    if expected is not None and abs(ratio / expected - 1) <= slack:
        return Point(Status.PASS, f"{text}; this tokenizer has {expected}")
    if log.val_tokens is not None and abs(log.val_tokens * ratio / VAL_BYTES - 1) < VAL_BYTES_SLACK:
        return Point(Status.PASS, f"{text}; with it the whole set has its bytes")
    for (vocab, operators), other in BYTES_PER_TOKEN.items():
        if vocab == log.vocab_size and abs(ratio / other - 1) <= slack:
            words = "with" if operators else "without"
            return Point(Status.PASS, f"{text}, as this vocabulary has {words} case operators")
    if expected is not None and abs(ratio - 1) > slack:
        off = ratio / expected - 1
        return Point(
            Status.FAIL,
            f"{text}, {100 * off:+.1f} % of the {expected} of this tokenizer: the score is "
            f"{'too low' if off > 0 else 'too high'} by as much",
        )
    if expected is not None:
        text += f", as of bytes; the tokenizer that the log names has {expected}"
        return Point(Status.UNKNOWN, text)
    if not PLAUSIBLE[0] < ratio < PLAUSIBLE[1]:
        return Point(Status.FAIL, f"{text}: outside the range of the contest's tokenizers")
    return Point(Status.PASS, f"{text}, plausible; its tokenizer is not known")


def _claimed_ratio(submission: Submission, nats: float, claimed_bpb: float) -> Iterator[Point]:
    ratio = nats / math.log(2) / claimed_bpb
    text = f"submission.json: {ratio:.4f} bytes a token from its val_loss and val_bpb"
    logged = [bytes_per_token(s) for log in submission.logs for s in log.quantized_scores]
    if logged and min(abs(ratio / other - 1) for other in logged) > 0.004:
        yield Point(Status.FAIL, f"{text}, {logged[-1]:.4f} in the log: they are no pair")
    elif not logged and not PLAUSIBLE[0] < ratio < PLAUSIBLE[1]:
        yield Point(Status.FAIL, f"{text}: outside the range of the contest's tokenizers")


def val_set(submission: Submission, options: Options) -> Finding | None:
    """The whole validation set is scored: tokens times bytes per token equal its bytes."""
    points = []
    for log in submission.logs:
        scores = [score for score in log.scores if score.digits >= 3 and score.bpb > 0]
        if not scores:
            continue
        if log.val_tokens is None:
            points.append(Point(Status.UNKNOWN, f"{log.name}: no number of validation tokens"))
            continue
        ratio = bytes_per_token(max(scores, key=lambda score: score.digits))
        size = log.val_tokens * ratio
        share = size / VAL_BYTES
        text = f"{log.name}: {log.val_tokens:,} tokens × {ratio:.3f} = {size / 1e6:.1f} MB"
        if abs(share - 1) <= VAL_BYTES_SLACK:
            points.append(Point(Status.PASS, f"{text}, the whole set"))
        else:
            what = "of the set is scored" if share < 1 else "of the set's bytes are counted"
            text = f"{text}: {100 * share:.0f} % {what} ({VAL_BYTES / 1e6:.1f} MB)"
            points.append(Point(Status.FAIL, text))
    if not points:
        return unknown("val-set", "no log has both the validation tokens and a score")
    return verdict("val-set", points, "the whole validation set is scored")


def leak(submission: Submission, options: Options) -> Finding | None:
    """The training shards are not those of a known preparation with validation documents in."""
    logs = [log for log in submission.logs if log.train_shards is not None]
    if not logs:
        return None
    points = [
        Point(
            Status.FAIL,
            f"{log.name}: train_shards {log.train_shards:,} is the mark of a preparation with "
            "10,000 validation documents, which leaves the other 40,000 in training",
        )
        if log.train_shards == LEAKED_TRAIN_SHARDS
        else Point(Status.PASS, f"{log.name}: train_shards {log.train_shards:,}")
        for log in logs
    ]
    return verdict("leak", points, "training shards are not those of a known leak")


RULES: tuple[Rule, ...] = (bpb, val_set, leak)
