"""Splits a log into runs and lines, without the sources dumped into it.

A log may begin with the whole source of its script, up to a ruler, and several runs may have been
written into one file, each with its own source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from packer.submission.log_sizes import has_size
from packer.submission.log_times import STEP

MAX_LINES = (10_000, 20_000)  # at the start and the end of a log; runs have fewer
MAX_LINE = 2_000  # characters that are searched
RULER = re.compile(r"^={60,}\s*$", re.MULTILINE)
IMPORT = re.compile(r"^(?:from [\w.]+ import |import \w)", re.MULTILINE)
ABSURD = re.compile(r"(?:\d[,_]?){19}")  # more digits than any size or count has
PLAIN_STEP = re.compile(r"(?:step:\s*)?\d{1,12}/\d{1,12}:?\s+train_(?:loss|time)")
PREFIX = re.compile(r"^(?:\[[^\]\n]{1,40}\]:?\s*|\d{4}-\d\d-\d\d[ T][\d:.,]+\s*)+")
# Lines that a script prints before its first step.
HEADER = re.compile(
    r"(?:seed|world_size|run_id|model_params|train_loader|val_loader|train_shards|val_tokens|"
    r"tokenizer_path|hyperparameters|running (?:python|pytorch))\b|={60,}$",
    re.IGNORECASE,
)
SEED = re.compile(r"(?<!\w)seed[:=]\s*(\d+)")
SEED_LINE = re.compile(r"^seed[:=]\s*(\d+)")
FINAL_SCORE = re.compile(r"(?:final|quantized|ttt)\w*.*val_bpb[:=]\s*\d", re.IGNORECASE)


def bounded_lines(text: str) -> tuple[list[str], int]:
    """(the first and the last lines of a log, the number of those between that are left out)."""
    lines = list(lines_of(text))
    first, last = MAX_LINES
    left = max(0, len(lines) - first - last)
    return (lines[:first] + lines[-last:] if left else lines), left


def lines_of(text: str) -> Iterator[str]:
    """The lines without sources, indentation and launcher prefixes, without lines with absurd
    numbers, and without repetitions; of consecutive steps only the last."""
    step, before = None, None
    for whole in _without_sources(text).splitlines():
        if whole == before:
            continue
        before = whole
        line = PREFIX.sub("", whole[:MAX_LINE].strip())
        if PLAIN_STEP.match(line):
            step = line
        elif ABSURD.search(line) is None:
            if step is not None:
                yield step
                step = None
            yield line
    if step is not None:
        yield step


def _without_sources(text: str) -> str:
    kept: list[str] = []
    at = 0
    for ruler in RULER.finditer(text):
        part = text[at : ruler.start()]
        match = IMPORT.search(part)
        if at == 0 and "import " in part:
            part = ""
        elif match is not None:  # the text before it is the end of another run
            part = part[: match.start()]
        kept += [part, ruler[0]]
        at = ruler.end()
    return "\n".join((*kept, text[at:])) if kept else text


def runs_in(lines: Sequence[str]) -> list[list[str]]:
    """The lines of each run. A run ends with its sizes or its final score; the next begins with a
    header or with its first step.
    """
    runs: list[list[str]] = [[]]
    ended, header = False, None
    last: tuple[int, int] | None = None
    seed: str | None = None
    for line in lines:
        step = STEP.match(line)
        now = (int(step["step"]), int(step["steps"])) if step is not None else None
        final = step is None and (has_size(line) or FINAL_SCORE.match(line) is not None)
        begins = False
        if ended and now is not None:
            begins = header is not None or (now[0] == 0 and last is not None and now[1] == last[1])
        elif ended and final and header is not None:  # only the end of this run was logged
            begins = _first_seed(runs[-1][header:], SEED_LINE) not in (None, seed)
        if begins:
            start = len(runs[-1]) if header is None else header
            runs.append(runs[-1][start:])
            del runs[-2][start:]
            ended, last, seed = False, None, _first_seed(runs[-1], SEED)
        if now is not None or final:
            last, header, ended = now or last, None, ended or final
        elif ended and header is None and HEADER.match(line):
            header = len(runs[-1])
        seed = seed or _first_seed([line], SEED)
        runs[-1].append(line)
    return runs


def _first_seed(lines: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    return next((match[1] for line in lines if (match := pattern.search(line))), None)
