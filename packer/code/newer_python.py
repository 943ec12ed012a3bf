"""Whether a source that does not parse here is one of a newer Python."""

from __future__ import annotations

import ast
import re
import sys

NESTED = (3, 12)  # f-strings may hold any expression since then, and types have parameters
START = re.compile(r"""(?<!\w)([a-zA-Z]{0,2})(\"\"\"|'''|"|')""")
WORD = re.compile(r"\w+")
TYPES = (
    (re.compile(r"^(\s*)type\s+(\w+)\s*(?:\[[^\n=]*\])?\s*=", re.MULTILINE), r"\1\2 ="),
    (re.compile(r"^(\s*(?:async\s+)?(?:def|class)\s+\w+)\[[^\n()]*\]", re.MULTILINE), r"\1"),
)


def needs(source: str) -> tuple[int, int] | None:
    """The Python that a source needs, where that is newer than this one; None if none is known.

    Told by taking out what PEP 701 and PEP 695 allow: what then parses, needs 3.12.
    """
    if sys.version_info >= NESTED or _parses(source):
        return None
    try:
        older, expressions = _without_nested(source)
    except (IndexError, RecursionError):
        return None
    for pattern, replacement in TYPES:
        older = pattern.sub(replacement, older)
    whole = _parses(older) and all(_parses(f"({one}\n)") for one in expressions)
    return NESTED if whole else None


def describe_needs(source: str, name: str) -> str:
    """Why a source does not parse, in words."""
    newer = needs(source)
    if newer is None:
        return f"{name} does not parse as Python"
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{name} needs Python {newer[0]}.{newer[1]} or newer; packer runs under {here}"


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _without_nested(source: str) -> tuple[str, list[str]]:
    """(the source with a plain text for every string; the expressions of its f-strings).

    Raises IndexError: a string that does not end.
    """
    out: list[str] = []
    expressions: list[str] = []
    at = 0
    while at < len(source):
        if source[at] == "#":
            end = source.find("\n", at)
            at = len(source) if end < 0 else end
        elif match := START.match(source, at):
            at = _string(source, match, expressions)
            out.append("''")
        else:
            word = WORD.match(source, at)
            end = word.end() if word else at + 1
            out.append(source[at:end])
            at = end
    return "".join(out), expressions


def _string(source: str, start: re.Match[str], expressions: list[str]) -> int:
    """Where a string ends; what stands in its replacement fields is added to the expressions."""
    formatted, quote = "f" in start[1].lower(), start[2]
    at = start.end()
    while not source.startswith(quote, at):
        if source[at] == "\\" or (formatted and source[at : at + 2] in ("{{", "}}")):
            at += 2
        elif formatted and source[at] == "{":
            at = _field(source, at + 1, expressions)
        else:
            at += 1
    return at + len(quote)


def _field(source: str, at: int, expressions: list[str]) -> int:
    """Where a replacement field ends; its format is left out of its expression."""
    out: list[str] = []
    depth, in_format = 0, False
    while source[at] != "}" or depth:
        letter = source[at]
        if not in_format and (match := START.match(source, at)):
            at = _string(source, match, expressions)
            out.append("''")
            continue
        depth += (letter in "([{") - (letter in ")]}")
        is_conversion = letter == "!" and source[at + 1] != "="
        in_format = in_format or (depth == 0 and (letter == ":" or is_conversion))
        if not in_format:
            out.append(letter)
        at += 1
    expressions.append("".join(out).rstrip("= "))
    return at + 1
