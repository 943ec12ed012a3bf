"""Short names that say the same everywhere: what functions call alike has one letter in all.

A compressor then finds the parameters of a function again in its calls and in other functions.
"""

from __future__ import annotations

import ast
import itertools
import keyword
import string
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

Key = tuple[bool, str]
"""(whether it is bound at the top of the source, the name)."""


def rename_alike(tree: ast.Module, entries: Collection[str]) -> None:
    """Short names for all of a closed source but its entries; the tree is changed.

    A function is taken as one scope with all that is in it, and its parameters that are not by
    position only keep their names.
    """
    top = {name for node in tree.body for name in _bound(node, inside=False)}
    counts: Counter[Key] = Counter((True, name) for name in top)
    beside: dict[Key, set[Key]] = defaultdict(set)
    new: dict[Key, str] = {(True, name): name for name in entries}
    for name in top:
        beside[True, name] |= {(True, other) for other in top}
    for function in _functions(tree):
        own = _bound(function, inside=True)
        used = [(name not in own, name) for name in _names(function)]
        known = [key for key in used if not key[0] or key[1] in top]
        counts.update(known)
        new.update({(False, one.arg): one.arg for one in function.args.args})
        for key in known:
            beside[key] |= {*known}
    members = _members_beside(tree)
    for key, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        others = {new[other] for other in beside[key] if other in new} | members[key[1]]
        if key not in new:
            new[key] = next(name for name in _short_names() if name not in others)
    _rename(tree, new)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """At the top, and methods."""
    for node in tree.body:
        parts = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (part for part in parts if isinstance(part, ast.FunctionDef))


def _members_beside(tree: ast.Module) -> Mapping[str, set[str]]:
    """By the names that the bodies of classes use outside of methods: what hides them there."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in (one for one in tree.body if isinstance(one, ast.ClassDef)):
        members: set[str] = set()
        used: list[ast.AST] = []
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                members.add(part.name)
                used += [*part.decorator_list, *part.args.defaults]
            elif isinstance(part, ast.AnnAssign):
                members.add(ast.unparse(part.target))
                used += [] if part.value is None else [part.value]
        for inner in (inner for one in used for inner in ast.walk(one)):
            if isinstance(inner, ast.Name):
                found[inner.id] |= members
    return found


def _names(function: ast.FunctionDef) -> list[str]:
    loaded = [node.id for node in ast.walk(function) if isinstance(node, ast.Name)]
    return [*loaded, *_bound(function, inside=True)]


def _bound(node: ast.AST, *, inside: bool) -> set[str]:
    """Names that a function binds inside, or a statement at the top outside."""
    if not inside and isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            found.add(part.arg)
        elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            found.add(part.id)
        elif isinstance(part, ast.alias):
            found.add(part.asname or part.name)
        elif isinstance(part, ast.FunctionDef | ast.ExceptHandler) and part is not node:
            found |= {part.name} if part.name else set()
    return found


def _rename(tree: ast.Module, new: Mapping[Key, str]) -> None:
    functions = [(function, _bound(function, inside=True)) for function in _functions(tree)]
    outside = _Renamed(new, set())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.bases = [outside.visit(base) for base in node.bases]
            node.decorator_list = [outside.visit(one) for one in node.decorator_list]
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and part.value is not None:
                    part.value = outside.visit(part.value)
        elif not isinstance(node, ast.FunctionDef):
            outside.visit(node)
    for function, own in functions:
        decorators = [outside.visit(one) for one in function.decorator_list]
        function.decorator_list = []
        _Renamed(new, own).generic_visit(function)
        function.decorator_list = decorators
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.name = new[True, node.name]


class _Renamed(ast.NodeTransformer):
    def __init__(self, new: Mapping[Key, str], own: Collection[str]) -> None:
        self.new, self.own = new, own

    def _name(self, name: str) -> str:
        return self.new.get((name not in self.own, name), name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self._name(node.arg)
        return node

    def visit_alias(self, node: ast.alias) -> ast.AST:
        name = self._name(node.asname or node.name)
        return ast.alias(node.name, None if name == node.name else name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self._name(node.name)
        return self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = self._name(node.name) if node.name else None
        return self.generic_visit(node)


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if not keyword.iskeyword(name):
                yield name
