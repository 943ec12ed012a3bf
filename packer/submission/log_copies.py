"""Removes copies of logs, so that every run counts once."""

from __future__ import annotations

from collections.abc import Sequence

from packer.submission.training_log import LoggedScore, TrainingLog

EXACT_DIGITS = 6  # two runs never agree in this many decimals of their bits per byte


def exact_scores(log: TrainingLog) -> set[tuple[float, float]]:
    """(nats, bits per byte) after quantization, with enough decimals to identify a run."""
    return {(one.nats, one.bpb) for one in log.quantized_scores if one.digits >= EXACT_DIGITS}


def without_copies(
    logs: Sequence[TrainingLog],
) -> tuple[tuple[TrainingLog, ...], tuple[tuple[str, str], ...]]:
    """(one log per run, preferably with the seed in its name; (copy, original) of the others).

    A log with another seed in its name is not a copy but an error, which a rule of its own finds.
    """
    kept: list[TrainingLog] = []
    copies: list[tuple[str, str]] = []
    for log in sorted(logs, key=lambda log: log.named_seed is None):
        original = next((one for one in kept if _same_run(one, log)), None)
        if original is None:
            kept.append(log)
        else:
            copies.append((log.name, original.name))
    return tuple(log for log in logs if log in kept), tuple(copies)


def _same_run(one: TrainingLog, other: TrainingLog) -> bool:
    names = {log.named_seed for log in (one, other)} - {None}
    seeds = {log.seed for log in (one, other)} - {None}
    if len(names) > 1 or len(seeds) > 1:
        return False
    if not (_agree(one.models, other.models) and _agree(one.totals, other.totals)):
        return False
    scores = [exact_scores(log) for log in (one, other)]
    if all(scores):
        return scores[0] <= scores[1] or scores[1] <= scores[0]
    return bool(one.scores) and _numbers(one.scores) == _numbers(other.scores)


def _agree(one: tuple[tuple[str, int], ...], other: tuple[tuple[str, int], ...]) -> bool:
    """Whether sizes are equal, or one log, copied only in part, has none."""
    return not one or not other or one == other


def _numbers(scores: Sequence[LoggedScore]) -> list[tuple[float, float]]:
    return [(score.nats, score.bpb) for score in scores]
