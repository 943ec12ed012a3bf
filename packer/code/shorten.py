"""A closed source made as short as it can be: nobody but its entries is called from outside.

So every other name may change: of functions, of parameters, and of the attributes of its own
classes (attributes.py). Numbers that have a name are put where they are used.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TypeGuard

from packer.code.attributes import rename_attributes
from packer.code.naming import rename_alike
from packer.errors import CodeError

Signature = tuple[list[str], list[ast.expr | None]]
"""(names of parameters, their defaults where they have one), without `self`."""


def shorten(tree: ast.Module, entries: Collection[str]) -> str:
    """The text of a tree (which is changed) that defines `entries`, and beside them what it likes.

    Raises CodeError: a call that leaves out a parameter.
    """
    import python_minifier

    _inline_numbers(tree)
    _by_position(tree, entries)
    _Returned().visit(tree)
    rename_attributes(tree)
    rename_alike(tree, entries)
    text = python_minifier.minify(
        ast.unparse(ast.fix_missing_locations(tree)),
        remove_literal_statements=True,
        rename_locals=False,
        hoist_literals=False,
        convert_posargs_to_args=False,
    )
    return str(python_minifier.unparse(_Unmarked().visit(ast.parse(text)))).strip() + "\n"


def _inline_numbers(tree: ast.Module) -> None:
    """Names that are bound once, to a number, at the top: the number in their place."""
    bound = Counter(
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )
    numbers = {
        node.targets[0].id: node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and bound[node.targets[0].id] == 1
        and _is_number(node.value)
    }
    _Inlined({name: node.value for name, node in numbers.items()}).visit(tree)
    gone = set(map(id, numbers.values()))
    tree.body = [node for node in tree.body if id(node) not in gone]


def _is_number(node: ast.expr) -> bool:
    """Of a few characters: a long one is shorter by name."""
    try:
        return isinstance(ast.literal_eval(node), int | float) and len(ast.unparse(node)) < 8
    except ValueError:
        return False


class _Inlined(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.values.get(node.id, node) if isinstance(node.ctx, ast.Load) else node


def _by_position(tree: ast.Module, entries: Collection[str]) -> None:
    """Arguments by position in every call of our own, so that parameters may be renamed."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name not in entries:
            _without_keyword_only(node.args)
    calls = _ByPosition(dict(_signatures(tree)))
    calls.visit(tree)
    named = {*entries, *calls.by_name}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name not in named:
            function.args.posonlyargs += function.args.args
            function.args.args = []


def _without_keyword_only(arguments: ast.arguments) -> None:
    """They become ordinary parameters after the others, where defaults allow it."""
    defaults = [one for one in arguments.kw_defaults if one is not None]
    if arguments.defaults and len(defaults) < len(arguments.kwonlyargs):
        return
    needed = len(arguments.kwonlyargs) - len(defaults)
    if any(one is not None for one in arguments.kw_defaults[:needed]):
        return
    arguments.args += arguments.kwonlyargs
    arguments.defaults += defaults
    arguments.kwonlyargs, arguments.kw_defaults = [], []


def _signatures(tree: ast.Module) -> Iterator[tuple[str, Signature]]:
    """What can be called by its name: functions, and classes by their fields or __init__."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, _signature(node, 0)
        elif isinstance(node, ast.ClassDef):
            made = [p for p in node.body if isinstance(p, ast.FunctionDef) and p.name == "__init__"]
            fields = [part for part in node.body if _is_parameter(part)]
            of_fields = [ast.unparse(one.target) for one in fields], [one.value for one in fields]
            yield node.name, _signature(made[0], 1) if made else of_fields


def _is_parameter(part: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    """Whether a statement of a class is a field that its constructor takes."""
    spelled = ast.unparse(part.value) if isinstance(part, ast.AnnAssign) and part.value else ""
    return isinstance(part, ast.AnnAssign) and "init=False" not in spelled


def _signature(node: ast.FunctionDef, first: int) -> Signature:
    names = [one.arg for one in node.args.args[first:]]
    missing: list[ast.expr | None] = [None] * (len(names) - len(node.args.defaults))
    return names, missing + list(node.args.defaults)


class _ByPosition(ast.NodeTransformer):
    """by_name: functions that something calls in a way that needs their parameters' names."""

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self.signatures = signatures
        self.by_name: set[str] = set()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self.signatures or not node.keywords:
            return node
        names, defaults = self.signatures[name]
        given = {one.arg: one.value for one in node.keywords}
        if any(isinstance(one, ast.Starred) for one in node.args) or not given.keys() <= {*names}:
            self.by_name.add(name)
            return node
        last = max(at for at, one in enumerate(names) if one in given)
        for at in range(len(node.args), last + 1):
            value = given.get(names[at], defaults[at])
            if value is None:
                raise CodeError(f"a call of {name} leaves out {names[at]}, which has no default")
            node.args.append(value)
        node.keywords = []
        return node


class _Returned(ast.NodeTransformer):
    """What a function gives a name in its last but one statement and returns: without the name."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if len(node.body) > 1:
            *before, named, last = node.body
            returned = last.value if isinstance(last, ast.Return) else None
            alone = isinstance(named, ast.Assign) and len(named.targets) == 1
            if alone and returned is not None and isinstance(returned, ast.Name):
                assert isinstance(named, ast.Assign)
                if ast.unparse(named.targets[0]) == returned.id:
                    node.body = [*before, ast.Return(named.value)]
        return node


class _Unmarked(ast.NodeTransformer):
    """Parameters by position only, which keep their short names, without the mark that says so."""

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        self.generic_visit(node)
        node.args = node.posonlyargs + node.args
        node.posonlyargs = []
        return node
