"""What files say, as it may be printed: spelled, never obeyed."""

from __future__ import annotations


def spelled(text: str) -> str:
    """Text on one line, with escapes for all that is no letter, digit, sign or space.

    Line feeds, escape sequences, marks that turn the direction of writing, letters of no width and
    bytes that are no text come out as in a Python string: `\\n`, `\\x1b`, `\\u202e`.
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def printable_lines(text: str) -> str:
    """As `spelled`, line by line: of texts whose line feeds are our own."""
    return "\n".join(spelled(line) for line in text.split("\n"))
