"""Inserts a source in front of a script's first statement, as one name.

The script itself is not changed. A script that extracts itself is unpacked, and compressed again
together with the inserted source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from packer.code.minify import is_literal, parse
from packer.code.self_extracting import ENTRY, unwrap, unwrap_payload, wrap


def inserted(source: str, name: str, script: str, codecs: Iterable[str]) -> str:
    """The script, in which `name` is a dictionary of what `source` defines.

    codecs: compressors for the source; a script that extracts itself may also use its own.
    Raises CodeError: the script does not parse.
    """
    codecs = tuple(codecs)
    inner = unwrap(script)
    if inner is None or [*inner] != [ENTRY]:
        line = wrap({ENTRY: source}, codecs=codecs).text.rstrip("\n")
        return _in_front(line.replace("exec(", f"{name}={{}};exec(", 1)[:-1], name, script)
    whole = _in_front(f"{name}={{}};exec({source!r}", name, inner[ENTRY])
    prelude, _, _ = (unwrap_payload(script) or b"").partition(b"\0")
    allowed = (*codecs, *(["brotli"] if "brotli" in script[:200] else []))
    return wrap(
        {ENTRY: whole}, findable=b"linecache" in prelude, codecs=dict.fromkeys(allowed)
    ).text


def _in_front(call: str, name: str, script: str) -> str:
    """call: without its closing arguments."""
    lines = script.splitlines(keepends=True)
    at = _first_statement(script)
    return "".join([*lines[:at], f"{call},{name})\n", *lines[at:]])


def _first_statement(script: str) -> int:
    """Number of lines before it: the docstring and imports from __future__ stay first."""
    at = 0
    for node in parse(script, "the script to put the bundle into").body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not future and not (is_literal(node) and at == 0):
            break
        at = node.end_lineno or at
    return at
