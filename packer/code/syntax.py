"""Python source as syntax trees, without running any of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from packer.errors import CodeError


def parse(source: str, name: str) -> ast.Module:
    """The syntax tree. Raises CodeError with the line that does not parse."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = name if line is None else f"{name}, line {line}"
        major, minor = sys.version_info[:2]
        raise CodeError(
            f"{place}: {getattr(error, 'msg', error)}; it does not parse as Python "
            f"{major}.{minor}, which packer runs under; if it needs Python {major}.{minor + 1} or "
            "newer, run packer under that"
        ) from None


def parse_if_possible(source: str) -> ast.Module | None:
    """The syntax tree; None of what does not parse."""
    try:
        return parse(source, "")
    except CodeError:
        return None


def calls_in(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def called_name(call: ast.Call) -> str:
    """Of the function or method; empty where something else is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_literal(node: ast.AST) -> bool:
    """Whether a statement is a docstring, or another literal without effect."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
