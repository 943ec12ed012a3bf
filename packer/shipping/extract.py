"""Extracts some of our own functions, and everything that they use, as one self-contained source.

Definitions are taken from the syntax trees of our modules by name, with everything that they name
in turn. Each name may be defined only once in the given modules, and is imported under that name.
"""

from __future__ import annotations

import ast
import functools
import importlib.resources
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from packer.code.prune_branches import Marks, without
from packer.code.syntax import is_literal
from packer.errors import CodeError

CALLED_BY_TORCH = ("forward",)  # methods without a call in our code
ANNOTATION_IMPORTS = ("__future__", "typing", "collections.abc", "numpy.typing")


@dataclass
class _Definitions:
    """Top-level statements of some modules by the names that they bind, and their imports."""

    by_name: dict[str, ast.stmt] = field(default_factory=dict)
    file_of: dict[str, str] = field(default_factory=dict)
    imports: dict[str, ast.stmt] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)  # names bound to modules of ours

    def add(self, node: ast.stmt, file: str) -> None:
        """Raises CodeError: two modules define the same name."""
        for name in _bound(node):
            if name in self.by_name:
                raise CodeError(
                    f"{self.file_of[name]} and {file} both define {name}, but are shipped "
                    "as one source: rename one of the two"
                )
            self.by_name[name], self.file_of[name] = node, file

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names that belong to no top-level statement and no method."""
        classes = (node for node in self.by_name.values() if isinstance(node, ast.ClassDef))
        parts = (part for node in classes for part in node.body)
        methods = {part.name for part in parts if isinstance(part, ast.FunctionDef)}
        return sorted({*names} - self.by_name.keys() - methods)


def extract(modules: Sequence[str], entries: Iterable[str], marks: Marks) -> ast.Module:
    """The entries and everything that they use from these modules (dotted names), without
    annotations and docstrings.

    marks: which branches and calls are left out, see `without`.
    Raises CodeError: an entry or a marked name is not defined, or a name is defined twice.
    """
    definitions = _definitions(modules)
    inlined = _WithoutModules(definitions.modules, definitions.by_name)
    missing = definitions.missing((*entries, *marks.names))
    if missing:
        raise CodeError(
            f"none of the modules defines {', '.join(missing)}: if it was renamed or removed, "
            "mend the list in packer/shipping that names it"
        )
    kept: dict[str, ast.stmt] = {}
    imports: dict[str, ast.stmt] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in definitions.imports:
            imports[name] = definitions.imports[name]
        if name in kept or name not in definitions.by_name:
            continue
        node = definitions.by_name[name]
        pruned = without(inlined.visit(bare(node)), marks)
        kept.update(dict.fromkeys(_bound(node), pruned))
        waiting += _named(pruned)
    drop_unused_methods(list(kept.values()))
    reached = _reached(kept, entries)
    kept = {name: node for name, node in kept.items() if name in reached}
    imports = {name: node for name, node in imports.items() if name in reached}
    order = {id(node): at for at, node in enumerate(dict.fromkeys(definitions.by_name.values()))}
    at = {id(kept[name]): order[id(definitions.by_name[name])] for name in kept}
    body = sorted({id(node): node for node in kept.values()}.values(), key=lambda n: at[id(n)])
    return ast.Module([*(imports[name] for name in sorted(imports)), *body], [])


def _reached(kept: Mapping[str, ast.stmt], entries: Iterable[str]) -> set[str]:
    """Names that the entries still use after unused methods are dropped."""
    reached: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _named(kept[name]) if name in kept else []
    return reached


def _definitions(modules: Sequence[str]) -> _Definitions:
    definitions = _Definitions()
    for name in modules:
        module = _tree(name).body
        for_annotations = _annotation_names(module)
        for node in module:
            if isinstance(node, ast.Assign) and for_annotations & {*_named(node.value)}:
                continue  # a type alias
            if isinstance(node, ast.Import | ast.ImportFrom):
                for one in _foreign(node):
                    definitions.imports[one.names[0].asname or one.names[0].name] = one
                if isinstance(node, ast.ImportFrom):
                    named = {f"{node.module}.{alias.name}": alias for alias in node.names}
                    definitions.modules |= {
                        named[m].asname or named[m].name for m in named if m in modules
                    }
            elif not is_literal(node):
                definitions.add(node, name)
    return definitions


def _annotation_names(module: Sequence[ast.stmt]) -> set[str]:
    """Names that a module imports only for annotations."""
    return {
        alias.asname or alias.name
        for node in module
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) else alias.name) in ANNOTATION_IMPORTS
    }


@functools.cache
def _tree(name: str) -> ast.Module:
    package, _, file = name.rpartition(".")
    return ast.parse(importlib.resources.files(package).joinpath(f"{file}.py").read_text("utf-8"))


def _foreign(node: ast.Import | ast.ImportFrom) -> Iterator[ast.Import | ast.ImportFrom]:
    """One statement for each import from other packages, except for those only in annotations."""
    if isinstance(node, ast.Import):
        yield from (ast.Import([a]) for a in node.names if a.name not in ANNOTATION_IMPORTS)
    elif not _ours(node) and node.module not in ANNOTATION_IMPORTS:
        yield from (ast.ImportFrom(node.module, [alias], 0) for alias in node.names)


def _ours(node: ast.ImportFrom) -> bool:
    return node.level > 0 or f"{node.module}.".startswith("packer.")


def _bound(node: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [name for target in targets if target is not None for name in ast.walk(target)]
    return [name.id for name in names if isinstance(name, ast.Name)]


def _named(node: ast.AST) -> list[str]:
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]


def bare(node: ast.stmt) -> ast.stmt:
    """A copy without docstrings and annotations; fields of classes are annotated with `0`."""
    copy = ast.parse(ast.unparse(node)).body[0]
    stripped: ast.stmt = _Bare().visit(copy)
    return stripped


class _WithoutModules(ast.NodeTransformer):
    """Turns `module.name` into `name` for modules of ours.

    A variable may have the name of a module: only attributes that some module defines are changed.
    """

    def __init__(self, modules: Collection[str], defined: Collection[str]) -> None:
        self.modules, self.defined = modules, defined

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        owner = node.value.id if isinstance(node.value, ast.Name) else None
        if owner in self.modules and node.attr in self.defined:
            return ast.Name(node.attr, ast.Load())
        return self.generic_visit(node)


def drop_unused_methods(nodes: Sequence[ast.stmt]) -> None:
    """Removes methods that no attribute access names, and methods that only describe or check."""
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
    if isinstance(part, ast.Assign):  # a class attribute
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
        """Our own functions are in the same source, so that importing them is not needed."""
        return None if _ours(node) else node

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        node.body = [part for part in node.body if not is_literal(part)] or [ast.Pass()]
        return node
