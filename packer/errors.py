"""What can go wrong, one class per way to fail; a message says what was found and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from packer.printable import spelled

STOPPED = "stopped; every file is as it was before or written whole"


class PackerError(Exception):
    """A refusal with a reason: shown to the user as one paragraph, exit code 1."""


class CheckpointError(PackerError):
    """A checkpoint that cannot be read, or must not be packed as it is."""


class SelectorError(PackerError):
    """A pin, drop or tensor name that matches nothing."""


class PlanError(PackerError):
    """A plan or candidates file that is damaged, stale, or names what does not exist."""


class CapError(PackerError):
    """A cap that no combination of candidates can meet."""


class OutputError(PackerError):
    """An output that could not be written; what stood there before is untouched."""


class CurvatureError(PackerError):
    """Curvature that is damaged, stale, or cannot be had from this model and text."""


class TuningError(PackerError):
    """Weights that cannot be tuned: no text, no time, or a model that gives no finite logits."""


class CodeError(PackerError):
    """Source code that cannot be read, minified or wrapped as asked."""


class SubmissionError(PackerError):
    """A submission folder that cannot be checked at all."""


def reason(error: Exception) -> str:
    """The error's first line, short enough for a sentence."""
    # torch puts a page of general advice before what happened.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = text.strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


MAX_LISTED = 5


def listed(items: Sequence[str], what: str = "") -> str:
    """Up to five items, then how many more."""
    shown = ", ".join(items[:MAX_LISTED])
    more = len(items) - MAX_LISTED
    return f"{shown} and {more} more {what}".rstrip() if more > 0 else shown


MAX_SHOWN = 1_500  # letters of a refusal; a file may hold names of any length


LIST_ITEM = "\n  "  # how a refusal begins each line of a list


def one_paragraph(text: str) -> str:
    """A refusal as it is shown: what a hostile file put into it stays short and moves no cursor.

    Lists keep their lines, which begin with `LIST_ITEM`.
    """
    plain = LIST_ITEM.join(spelled(line) for line in text.strip().split(LIST_ITEM))
    if len(plain) <= MAX_SHOWN:
        return plain
    half = MAX_SHOWN // 2
    return f"{plain[:half]} … {len(plain) - MAX_SHOWN:,} letters … {plain[-half:]}"
