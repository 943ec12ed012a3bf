"""Lines of a log that speak of calibration, by kind: what is done, and what the text is.

Calibration that reads data makes the artifact from data, and belongs to training; on text that the
model wrote itself, or on random tokens, it does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """DATA: the line says so, or counts what it read. OWN: self-generated or random text."""

    DATA = "data"
    OWN = "own"
    UNSAID = "unsaid"


READ = r"(?:batch|sample|sequence|shard|doc(?:ument)?|forward pass|window|chunk)(?:e?s)?\b"
ACTIONS = (
    r"calib",
    r"hessian(?![- ]aware)",
    r"\bH\s*\+?=\s*(?:sum )?X|X\^?T ?[@*]? ?X\b|X\.T ?@ ?X\b|\bxtx\b",
    r"(?:activation|input|covariance|channel)s? (?:stat|scale|norm|maxim|range|energ)",
    r"gram matri|\bfisher\b|\bimatrix\b|importance matri",
    rf"\b(?:gptq|awq|smoothquant|obq|sparsegpt)\b.{{0,60}}(?<![a-z]){READ}",
)
# Nothing was calibrated, or not the weights, or time was only kept free for it.
NO_ACTION = (
    r"reserv(?!ed_train)",
    r"skip\w* (?:gptq|calib|hessian)|calib\w* (?:skipped|disabled)|\b(?:no|not|without) calib",
    r"calib\w*[:=]\s*(?:0|off|false|none)\b|\bno hessian",
    r"temperature|probabilit|\bece\b",
)
OWN = (
    r"self[- _]?gen|autoregressive|\bAR[- ](?:gen|self)",
    r"generat(?:ed|ing) (?:\d+ )?(?:text|sequences|samples|tokens|calibration)",
    r"(?:model'?s|its|her|own) own (?:text|samples|output|generation)",
    r"random (?:token|text|input|sequence)|synthetic|gaussian (?:input|noise)",
    r"data[- ]free|\b(?:no|zero|without)(?: any)? (?:real |external |training |train )?data",
)
DATA = (
    r"train(?:ing)?[ _-]?(?:data|set|batch|shard|token|text|sequence|sample|doc|split|loader|file)",
    r"(?:from|on|over|of|with|using) (?:the )?train(?:ing)?\b|fineweb|\breal (?:data|text|token)",
    r"val(?:idation)?[ _-]?(?:data|set|batch|shard|token|text|sequence|split)",
    # A count of what was read; what is counted of an own text says that it is one.
    rf"\b\d[\d,]* (?:\w+ ){{0,2}}{READ}|(?<![a-z]){READ}\s*[:=]\s*\d",
)


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


ACTION, NONE, OWN_TEXT, DATA_TEXT = map(_any_of, (ACTIONS, NO_ACTION, OWN, DATA))


@dataclass(frozen=True)
class Calibration:
    """What one line says. keyword_end: where the word for it ends in the line."""

    line: str
    source: Source
    keyword_end: int


def calibration_in(line: str) -> Calibration | None:
    """None for a line that speaks of none, or of none that was done."""
    keyword = ACTION.search(line)
    if keyword is None or NONE.search(line):
        return None
    source = Source.UNSAID
    if OWN_TEXT.search(line):
        source = Source.OWN
    elif DATA_TEXT.search(line):
        source = Source.DATA
    return Calibration(line, source, keyword.end())
