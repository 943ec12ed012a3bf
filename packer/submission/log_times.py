"""Seconds in a training log: of the loop, of the calibration that follows, of the evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from packer.submission.calibration import Calibration, Source, calibration_in
from packer.submission.log_sizes import tells_a_size

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
# Of an artifact that is made; anything else may be calibrated for an evaluation.
OF_WEIGHTS = re.compile(r"gptq|awq|hessian|quanti[sz]|export", re.IGNORECASE)
_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "secs": 1e3, "seconds": 1e3, "m": 6e4, "min": 6e4}


def seconds(match: re.Match[str]) -> float:
    return float(match["amount"]) * _MS[match["unit"]] / 1e3


def parse_times(lines: Sequence[str]) -> dict[str, Any]:
    """Facts by their names in TrainingLog."""
    found: dict[str, Any] = {}
    spoken: list[Calibration] = []
    later: list[Calibration] = []  # after an artifact was made, which it is no part of
    own_text, made = False, False
    for line in lines:
        if match := STEP.match(line) or STOP.match(line):
            step, found["steps"] = (int(number) for number in match.groups()[:2])
            if step > found.get("step", -1):  # settings, or inside the loop, whose clock runs on
                spoken, later, made = [], [], False
            found["after"] = len(spoken)
            found["step"] = step
        if match := TRAIN_TIME.search(line):
            found["train_seconds"] = max(found.get("train_seconds", 0.0), seconds(match))
        if match := GPTQ_BUDGET.match(line):
            found |= {"calibrated": True, "train_seconds": float(match["train"]) / 1e3}
            found |= {"calibration_seconds": float(match["gptq"]) / 1e3}
            found.pop("after", None)
            return found
        if match := TOTAL_EVAL.match(line):
            found["eval_seconds"] = seconds(match)
        if tells_a_size(line):
            spoken, later, made = spoken + later, [], True
        elif (calibration := calibration_in(line)) is not None:
            of_weights = not made or OF_WEIGHTS.search(line) is not None
            (spoken if of_weights else later).append(calibration)
            own_text = own_text or calibration.source is Source.OWN
    return found | _calibrated(spoken, found.pop("after", 0), own_text)


def _calibrated(spoken: Sequence[Calibration], after: int, own_text: bool) -> dict[str, Any]:
    """after: the number of those that stand before the last line of the loop."""
    if not spoken:
        return {"own_text": own_text}
    found: dict[str, Any] = {"calibrated": True, "own_text": own_text}
    late = spoken[after:]
    if late:
        found["calibration_line"] = late[0].line
        of_data = (one.line for one in late if one.source is Source.DATA)
        found["calibration_data"] = next(of_data, None)
    timed = [duration for one in spoken for duration in _calibration(one)]
    return found | ({"calibration_seconds": sum(timed)} if timed else {})


def _calibration(one: Calibration) -> list[float]:
    """The duration after the keyword, or else before it, that is not the training's."""
    after = TRAINED_FOR.sub("", one.line[one.keyword_end :])
    timed = ANY_DURATION.search(after) or ANY_DURATION.search(TRAINED_FOR.sub("", one.line))
    return [seconds(timed)] if timed else []
