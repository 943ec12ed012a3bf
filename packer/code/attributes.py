"""Short names for the attributes that only a source's own classes have.

Nothing says of what class a value is, so an attribute that arrays, tensors, coders or builtins may
have as well keeps its name.
"""

from __future__ import annotations

import ast
import itertools
import keyword
from collections import Counter
from collections.abc import Iterator

import numpy as np

# Attributes that the sources use of tensors, coders and codecs, beside those of arrays.
FOREIGN = {"decode", "encode_reverse", "get_compressed", "is_empty", "eof", "unused_data"}
FOREIGN |= {"dim", "numel", "float", "double", "long", "half", "device", "type", "grad", "to"}
FOREIGN |= {"nbytes", "expand", "name", "stride", "process", "is_finished", "order"}
FOREIGN |= {"forward", "parameters"}  # and of torch's modules
FOREIGN |= {
    name
    for one in (np.ndarray, str, bytearray, memoryview, list, dict, set, int, slice)
    for name in dir(one)
}


def rename_attributes(tree: ast.Module) -> None:
    """The tree is changed."""
    taken = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    free = (name for name in _short_names() if name not in taken)
    new = dict(zip(own_attributes(tree), free, strict=False))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            node.attr = new.get(node.attr, node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "replace":
            for given in node.keywords:  # dataclasses.replace takes fields by their names
                given.arg = new.get(given.arg or "", given.arg)
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    part.name = new.get(part.name, part.name)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    part.target.id = new.get(part.target.id, part.target.id)


def own_attributes(tree: ast.Module) -> list[str]:
    """Attributes of the tree's classes that nothing else is known to have, the most used first.

    An attribute of an imported module is never a class's own.
    """
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {name for node in classes for name in _members(node)}
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    counts = Counter(use.attr for use in uses)
    others = {use.attr for use in uses if _root(use) in imported} | FOREIGN
    kept = {name for name in own if name.startswith("__")} | others
    return sorted(own - kept, key=lambda name: (-counts[name], name))


def _members(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, ast.AnnAssign):
            yield ast.unparse(part.target)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield from [inner.attr] if ast.unparse(inner.value) == "self" else []


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=length):
            name = "".join(letters)
            if not keyword.iskeyword(name):
                yield name
