"""Some of our own functions as one self-contained source: what they reach, and nothing else.

Definitions are taken from the syntax trees of our modules by name, with everything that they name
in turn. A name is defined once among the modules that are given, and imported as it is called.
"""

from __future__ import annotations

import ast
import functools
import importlib.resources
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from packer.code.minify import is_literal
from packer.code.prune_branches import Marks, without
from packer.errors import CodeError

"""(package, file name)."""
CALLED_BY_TORCH = ("forward",)  # methods of ours
UNSEEN_IMPORTS = ("__future__", "typing", "collections.abc", "numpy.typing")  # of annotations


@dataclass
class _Definitions:
    """Statements at the top of some modules, by the names that they bind; and their imports."""

    by_name: dict[str, ast.stmt] = field(default_factory=dict)
    file_of: dict[str, str] = field(default_factory=dict)
    imports: dict[str, ast.stmt] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)  # names that stand for modules of ours

    def add(self, node: ast.stmt, file: str) -> None:
        """Raises CodeError: a name that two modules define."""
        for name in _bound(node):
            if name in self.by_name:
                raise CodeError(
                    f"{self.file_of[name]} and {file} both define {name}, and what is shipped of "
                    "them is one source: rename one of the two"
                )
            self.by_name[name], self.file_of[name] = node, file

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that neither a statement at the top nor a method has."""
        classes = (node for node in self.by_name.values() if isinstance(node, ast.ClassDef))
        parts = (part for node in classes for part in node.body)
        methods = {part.name for part in parts if isinstance(part, ast.FunctionDef)}
        return sorted({*names} - self.by_name.keys() - methods)


def extract(
    modules: Sequence[str],
    entries: Iterable[str],
    marks: Marks,
) -> ast.Module:
    """The entries of these modules (dotted names) and what they reach, without annotations and
    docstrings.

    marks: what branches and calls are left out, see `without`.
    Raises CodeError: an entry or a marked name that is not there, a name defined twice.
    """
    found = _definitions(modules)
    inlined = _WithoutModules(found.modules, found.by_name)
    missing = found.missing((*entries, *marks.names))
    if missing:
        raise CodeError(
            f"none of the modules defines {', '.join(missing)}: where it was renamed or is gone, "
            "mend the list of what is shipped that names it"
        )
    kept: dict[str, ast.stmt] = {}
    imports: dict[str, ast.stmt] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found.imports:
            imports[name] = found.imports[name]
        if name in kept or name not in found.by_name:
            continue
        node = found.by_name[name]
        pruned = without(inlined.visit(bare(node)), marks)
        kept.update(dict.fromkeys(_bound(node), pruned))
        waiting += _named(pruned)
    drop_unused_methods(list(kept.values()))
    still = _reached(kept, entries)
    kept = {name: node for name, node in kept.items() if name in still}
    imports = {name: node for name, node in imports.items() if name in still}
    order = {id(node): at for at, node in enumerate(dict.fromkeys(found.by_name.values()))}
    at = {id(kept[name]): order[id(found.by_name[name])] for name in kept}
    body = sorted({id(node): node for node in kept.values()}.values(), key=lambda n: at[id(n)])
    return ast.Module([*(imports[name] for name in sorted(imports)), *body], [])


def _reached(kept: Mapping[str, ast.stmt], entries: Iterable[str]) -> set[str]:
    """Names that the entries still lead to, now that no unused method names any."""
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _named(kept[name]) if name in kept else []
    return found


def _definitions(modules: Sequence[str]) -> _Definitions:
    found = _Definitions()
    for name in modules:
        module = _tree(name).body
        unseen = _unseen(module)
        for node in module:
            if isinstance(node, ast.Assign) and unseen & {*_named(node.value)}:
                continue  # a short name for an annotation
            if isinstance(node, ast.Import | ast.ImportFrom):
                for one in _foreign(node):
                    found.imports[one.names[0].asname or one.names[0].name] = one
                if isinstance(node, ast.ImportFrom):
                    named = {f"{node.module}.{alias.name}": alias for alias in node.names}
                    found.modules |= {
                        named[m].asname or named[m].name for m in named if m in modules
                    }
            elif not is_literal(node):
                found.add(node, name)
    return found


def _unseen(module: Sequence[ast.stmt]) -> set[str]:
    """Names that a module imports for its annotations."""
    return {
        alias.asname or alias.name
        for node in module
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) else alias.name) in UNSEEN_IMPORTS
    }


@functools.cache
def _tree(name: str) -> ast.Module:
    package, _, file = name.rpartition(".")
    return ast.parse(importlib.resources.files(package).joinpath(f"{file}.py").read_text("utf-8"))


def _foreign(node: ast.Import | ast.ImportFrom) -> Iterator[ast.Import | ast.ImportFrom]:
    """One statement for each name that comes from elsewhere and is not for annotations alone."""
    if isinstance(node, ast.Import):
        yield from (ast.Import([a]) for a in node.names if a.name not in UNSEEN_IMPORTS)
    elif not _ours(node) and node.module not in UNSEEN_IMPORTS:
        yield from (ast.ImportFrom(node.module, [alias], 0) for alias in node.names)


def _ours(node: ast.ImportFrom) -> bool:
    return node.level > 0 or f"{node.module}.".startswith("packer.")


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [name for target in targets if target is not None for name in ast.walk(target)]
    return [name.id for name in names if isinstance(name, ast.Name)]


def _named(node: ast.AST) -> list[str]:
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]


def bare(node: ast.stmt) -> ast.stmt:
    """A copy without docstrings and annotations; fields of classes keep `0` for theirs."""
    copy = ast.parse(ast.unparse(node)).body[0]
    made: ast.stmt = _Bare().visit(copy)
    return made


class _WithoutModules(ast.NodeTransformer):
    """What modules of ours are asked for by attribute: the name itself.

    A variable may be called as a module is: only what some module defines is taken so.
    """

    def __init__(self, modules: Collection[str], defined: Collection[str]) -> None:
        self.modules, self.defined = modules, defined

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        owner = node.value.id if isinstance(node.value, ast.Name) else None
        if owner in self.modules and node.attr in self.defined:
            return ast.Name(node.attr, ast.Load())
        return self.generic_visit(node)


def drop_unused_methods(nodes: Sequence[ast.stmt]) -> None:
    """Methods that no attribute names, and texts for people, are taken out of the classes."""
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    while True:
        used = {
            inner.attr
            for node in nodes
            for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute)
        }
        before = sum(len(node.body) for node in classes)
        for node in classes:
            node.body = [part for part in node.body if _is_used(part, used)] or [ast.Pass()]
        if sum(len(node.body) for node in classes) == before:
            return


def _is_used(part: ast.stmt, used: Collection[str]) -> bool:
    if isinstance(part, ast.Assign):  # what all of a class have
        return any(name in used for name in _bound(part))
    if not isinstance(part, ast.FunctionDef):
        return True
    if part.name in ("__str__", "__post_init__"):  # the latter only check
        return False
    return part.name.startswith("__") or part.name in used or part.name in CALLED_BY_TORCH


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                part.annotation = ast.Constant(0)
        for part in node.body:
            if not isinstance(part, ast.AnnAssign):
                self.visit(part)
        return self._body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Assert(self, _: ast.Assert) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """What a function imports of ours stands beside it."""
        return None if _ours(node) else node

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        node.body = [part for part in node.body if not is_literal(part)] or [ast.Pass()]
        return node
