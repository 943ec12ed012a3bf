"""Seconds in a training log: of the loop, of the calibration that follows, of the evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
CALIBRATION = re.compile(
    r"calib|hessian(?![- ]aware)|(?:activation|input|covariance)s? (?:stat|scale)|"
    r"\b(?:gptq|awq)\b.{0,60}\b(?:batch|sample|sequence|forward pass)(?:e?s)\b",
    re.IGNORECASE,
)
# Nothing was calibrated, or not the weights, or time was only kept free for it.
NO_CALIBRATION = re.compile(
    r"reserv|skip\w* (?:gptq|calib|hessian)|calib\w* (?:skipped|disabled)|"
    r"\b(?:no|not|without) calib|calib\w*[:=]\s*(?:0|off|false|none)\b|"
    r"temperature|probabilit|\bece\b",
    re.IGNORECASE,
)
OWN_TEXT = re.compile(
    r"self[- _]?gen|autoregressive|\bAR[- ]gen|generat(?:ed|ing) (?:text|sequences|calibration)|"
    r"(?:model'?s|its) own (?:text|samples|output)|random tokens|synthetic|data[- ]free",
    re.IGNORECASE,
)
_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "secs": 1e3, "seconds": 1e3, "m": 6e4, "min": 6e4}


def seconds(match: re.Match[str]) -> float:
    return float(match["amount"]) * _MS[match["unit"]] / 1e3


def parse_times(lines: Sequence[str]) -> dict[str, Any]:
    """Facts by their names in TrainingLog."""
    found: dict[str, Any] = {}
    calibration: list[float] = []
    for line in lines:
        if match := STEP.match(line) or STOP.match(line):
            step, found["steps"] = (int(number) for number in match.groups()[:2])
            if step > found.get("step", -1):  # settings, or inside the loop, whose clock runs on
                found.pop("calibrated", None)
                calibration = []
            found.pop("calibration_line", None)
            found["step"] = step
        if match := TRAIN_TIME.search(line):
            found["train_seconds"] = max(found.get("train_seconds", 0.0), seconds(match))
        if match := GPTQ_BUDGET.match(line):
            found |= {"calibrated": True, "train_seconds": float(match["train"]) / 1e3}
            calibration = [float(match["gptq"]) / 1e3]
            break
        if match := TOTAL_EVAL.match(line):
            found["eval_seconds"] = seconds(match)
        keyword = CALIBRATION.search(line)
        if keyword is not None and NO_CALIBRATION.search(line) is None:
            found["calibrated"] = True
            found.setdefault("calibration_line", line)
            found["own_text"] = found.get("own_text", False) or bool(OWN_TEXT.search(line))
            calibration += _calibration(line, keyword.end())
    if calibration:
        found["calibration_seconds"] = sum(calibration)
    return found


def _calibration(line: str, keyword_end: int) -> list[float]:
    """The duration after the keyword, or else before it, that is not the training's."""
    after = TRAINED_FOR.sub("", line[keyword_end:])
    timed = ANY_DURATION.search(after) or ANY_DURATION.search(TRAINED_FOR.sub("", line))
    return [seconds(timed)] if timed else []
