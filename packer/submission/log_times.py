"""Parses the seconds in a training log: of the loop, of calibration, of the evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from packer.submission.calibration import Calibration, Source, calibration_in
from packer.submission.log_sizes import has_size

STEP = re.compile(
    r"(?:step:\s*)?(?P<step>\d+)/(?P<steps>\d+):?\s+(?P<rest>(?:val|train)_(?:loss|time).*)"
)
STOP = re.compile(r"stopping_early:.*?step:\s*(\d+)/(\d+)")
DURATION = r"(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|sec|secs|seconds|m|min)\b"
TRAIN_TIME = re.compile(rf"train(?:ing)?[_ ]time:\s*{DURATION}")
GPTQ_BUDGET = re.compile(
    r"gptq:budget_check train:(?P<train>\d+(?:\.\d+)?)ms \+ gptq:(?P<gptq>\d+(?:\.\d+)?)ms"
)
TOTAL_EVAL = re.compile(rf"total_eval_time[:=]\s*{DURATION}")
ANY_DURATION = re.compile(rf"(?<![\w.]){DURATION}")
TRAINED_FOR = re.compile(rf"\btrain(?:ed|ing|_\w+)?\b[^,;|]{{0,24}}?{DURATION}", re.IGNORECASE)
# Calibration of weights for the artifact; anything else may be for an evaluation.
OF_WEIGHTS = re.compile(r"gptq|awq|hessian|quanti[sz]|export", re.IGNORECASE)
_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "secs": 1e3, "seconds": 1e3, "m": 6e4, "min": 6e4}


def seconds(match: re.Match[str]) -> float:
    return float(match["amount"]) * _MS[match["unit"]] / 1e3


def parse_times(lines: Sequence[str]) -> dict[str, Any]:
    """Facts by their names in TrainingLog."""
    facts: dict[str, Any] = {}
    mentioned: list[Calibration] = []
    later: list[Calibration] = []  # after the artifact was written, so not part of it
    own_text, has_artifact = False, False
    for line in lines:
        if match := STEP.match(line) or STOP.match(line):
            step, facts["steps"] = (int(number) for number in match.groups()[:2])
            if step > facts.get("step", -1):  # settings, or inside the loop and its time
                mentioned, later, has_artifact = [], [], False
            facts["after"] = len(mentioned)
            facts["step"] = step
        if match := TRAIN_TIME.search(line):
            facts["train_seconds"] = max(facts.get("train_seconds", 0.0), seconds(match))
        if match := GPTQ_BUDGET.match(line):
            facts |= {"calibrated": True, "train_seconds": float(match["train"]) / 1e3}
            facts |= {"calibration_seconds": float(match["gptq"]) / 1e3}
            facts.pop("after", None)
            return facts
        if match := TOTAL_EVAL.match(line):
            facts["eval_seconds"] = seconds(match)
        if has_size(line):
            mentioned, later, has_artifact = mentioned + later, [], True
        elif (calibration := calibration_in(line)) is not None:
            of_weights = not has_artifact or OF_WEIGHTS.search(line) is not None
            (mentioned if of_weights else later).append(calibration)
            own_text = own_text or calibration.source is Source.OWN
    return facts | _calibrated(mentioned, facts.pop("after", 0), own_text)


def _calibrated(mentioned: Sequence[Calibration], after: int, own_text: bool) -> dict[str, Any]:
    """after: the number of mentions before the last line of the loop."""
    if not mentioned:
        return {"own_text": own_text}
    facts: dict[str, Any] = {"calibrated": True, "own_text": own_text}
    late = mentioned[after:]
    if late:
        facts["calibration_line"] = late[0].line
        of_data = (one.line for one in late if one.source is Source.DATA)
        facts["calibration_data"] = next(of_data, None)
    timed = [duration for one in mentioned for duration in _calibration(one)]
    return facts | ({"calibration_seconds": sum(timed)} if timed else {})


def _calibration(one: Calibration) -> list[float]:
    """The duration after the keyword, or else before it, without those of the training."""
    after = TRAINED_FOR.sub("", one.line[one.keyword_end :])
    timed = ANY_DURATION.search(after) or ANY_DURATION.search(TRAINED_FOR.sub("", one.line))
    return [seconds(timed)] if timed else []
