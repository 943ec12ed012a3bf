"""Code that is counted and never runs: functions nobody names, and branches whose switch is off."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from packer.code.minify import is_literal, parse
from packer.code.switches import Switches, Unknown

# Decorators that do not hand the function to anybody else.
HARMLESS = {"staticmethod", "classmethod", "property", "dataclass", "cache", "lru_cache"}
HARMLESS |= {"compile", "no_grad", "inference_mode", "contextmanager", "jit"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class DeadCode:
    """Lines first to last (1 is the top), their UTF-8 bytes, and why nothing runs them."""

    first_line: int
    last_line: int
    size_bytes: int
    what: str
    reason: str


def dead_code(
    source: str,
    name: str,
    environment: Mapping[str, str] | None = None,
    named_elsewhere: Collection[str] = (),
) -> tuple[DeadCode, ...]:
    """What looks dead, by line; nothing is listed inside something that is listed.

    environment: variables that the script will find set; without them defaults count.
    named_elsewhere: what other files name, see `names_in`.
    Raises CodeError: source that does not parse.
    """
    tree = parse(source, name)
    switches = Switches(tree, environment or {})
    found = [*_unreferenced(tree, named_elsewhere), *_never_reached(tree, switches)]
    lines = source.splitlines(keepends=True)
    listed: list[DeadCode] = []
    for first, last, what, reason in sorted(found, key=lambda one: (one[0], -one[1])):
        if listed and last <= listed[-1].last_line:
            continue
        size = len("".join(lines[first - 1 : last]).encode())
        listed.append(DeadCode(first, last, size, what, reason))
    return tuple(listed)


def names_in(source: str, name: str) -> set[str]:
    """Every name that a file writes, in strings and imports too. Raises CodeError."""
    return set(_words([parse(source, name)]))


Found = tuple[int, int, str, str]


def _unreferenced(tree: ast.Module, named_elsewhere: Collection[str]) -> Iterator[Found]:
    """Functions and classes at the top that nothing reachable from the script's own run names.

    A name counts wherever it is written, in strings too: getattr and registries use those. A
    file that runs nothing is a library, and what others name in it is not known.
    """
    if not any(isinstance(node, _RUNS) and not is_literal(node) for node in tree.body):
        return
    definitions = {node.name: node for node in tree.body if isinstance(node, Definition)}
    removable = {name for name, node in definitions.items() if _only_named(node)}
    kept = [node for node in tree.body if getattr(node, "name", None) not in removable]
    reached = set(_words(kept)) | set(named_elsewhere)
    waiting = [name for name in removable if name in reached]
    while waiting:
        new = set(_words([definitions[waiting.pop()]])) - reached
        reached |= new
        waiting += [name for name in new if name in removable]
    for name in sorted(removable - reached):
        node = definitions[name]
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        yield _first_line(node), _last_line(node), f"{kind} {name}", "named by nothing that runs"


_RUNS = (ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try)


def _only_named(node: Definition) -> bool:
    """Whether the definition can only matter to whoever names it."""
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    harmless = all((getattr(d, "attr", "") or getattr(d, "id", "")) in HARMLESS for d in decorators)
    return harmless and not node.name.startswith("__")


def _words(nodes: Iterable[ast.AST]) -> Iterator[str]:
    everything = [inner for outer in nodes for inner in ast.walk(outer)]
    lone = {id(node.value) for node in everything if isinstance(node, ast.Expr)}
    for node in everything:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif id(node) in lone:  # a docstring speaks of things and names none
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.replace(".", " ").split()


def _never_reached(tree: ast.Module, switches: Switches) -> Iterator[Found]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While):
            yield from _off(node, switches)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield from _after_the_end(block)


def _off(node: ast.If | ast.While, switches: Switches) -> Iterator[Found]:
    try:
        value = switches.value(node.test)
    except Unknown:
        return
    word = "if" if isinstance(node, ast.If) else "while"
    test = f"{word} {ast.unparse(node.test)}"
    if not value:
        yield *_span(node.body), test, f"{_short(node.test)} is {value!r}"
    elif node.orelse and isinstance(node, ast.If):
        yield *_span(node.orelse), f"else of {test}", f"{_short(node.test)} is {value!r}"


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _after_the_end(block: list[ast.stmt]) -> Iterator[Found]:
    for node, after in itertools.pairwise(block):
        if isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue):
            first, last = _first_line(after), _last_line(block[-1])
            ending = type(node).__name__.lower()
            yield first, last, f"after {ending}", f"line {node.lineno} ends the block"
            return


def _span(block: list[ast.stmt]) -> tuple[int, int]:
    return _first_line(block[0]), _last_line(block[-1])


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _last_line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
