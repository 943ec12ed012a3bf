"""Minified Python source; anything that changes the syntax tree only on request."""

from __future__ import annotations

import ast
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from packer.code.syntax import called_name, calls_in, is_literal, parse
from packer.errors import CodeError

# Passes of python-minifier after which the text parses to another syntax tree.
CHANGES_TREE = (
    *("remove_pass", "combine_imports", "hoist_literals", "rename_locals", "remove_object_base"),
    *("remove_explicit_return_none", "remove_builtin_exception_brackets", "constant_folding"),
    "remove_dead_branches",
)
# Where one of these is called, python-minifier shortens no name at all.
READS_NAMES = {"exec", "eval", "locals", "globals", "vars"}


@dataclass(frozen=True)
class Minified:
    """same_tree: the text parses to the original's tree, docstrings and the like left out of both.

    It is False when names were shortened: nothing is claimed then but that the text compiles.
    """

    text: str
    same_tree: bool


def minify(source: str, name: str, *, rename: bool = False) -> Minified:
    """The source without comments, docstrings and layout; annotations and names stay.

    rename: shorten local names, hoist literals, fold constants and join imports as well. Functions
    keep their parameters' names for callers, and modules their globals, but code that reads its
    own local names (locals(), eval) may notice.
    Raises CodeError: source that does not parse, or a result that is not what was claimed.
    """
    tree = parse(source, name)
    text = _minified(source, name, rename).strip("\n") + "\n"
    short = parse(text, f"{name}, minified")
    if not rename and fingerprint(short) != fingerprint(tree):
        raise CodeError(
            f"{name}: the minified text does not parse to the original's syntax tree; pack the "
            "file with --no-minify"
        )
    return Minified(text, same_tree=not rename)


def _minified(source: str, name: str, rename: bool) -> str:
    import python_minifier

    # Annotations are read at run time by dataclasses, Triton kernels and torch.library.custom_op.
    kept = python_minifier.RemoveAnnotationsOptions(
        remove_variable_annotations=rename,
        remove_return_annotations=False,
        remove_argument_annotations=False,
        remove_class_attribute_annotations=False,
    )
    changes: dict[str, Any] = dict.fromkeys(CHANGES_TREE, rename)
    try:
        return str(
            python_minifier.minify(
                source,
                name,
                remove_annotations=kept,
                remove_literal_statements=True,
                convert_posargs_to_args=False,
                **changes,
            )
        )
    except Exception as error:  # its own classes, and whatever an unknown construct raises
        raise CodeError(f"{name} cannot be minified ({error}); pack it with --no-minify") from None


def minify_closed(tree: ast.Module, entries: Collection[str]) -> str:
    """The text of a source (whose tree is modified) of which only `entries` is called from outside:
    every other name in it, of globals and of parameters too, is shortened; attributes keep theirs.
    Raises CodeError: code that may read names, so that none can be shortened.
    """
    import python_minifier

    reads = READS_NAMES & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if reads:
        raise CodeError(
            f"what is shipped names {', '.join(sorted(reads))}, so its names cannot be shortened; "
            "do without (of a module's or object's names, __dict__ has them)"
        )
    _by_position_only(ast.fix_missing_locations(tree), entries)
    text = python_minifier.minify(
        ast.unparse(tree),
        remove_literal_statements=True,
        rename_globals=True,
        preserve_globals=[*entries],
        hoist_literals=False,  # a compressor spells them shorter than a name does
    )
    return str(text).strip("\n") + "\n"


def _by_position_only(tree: ast.Module, entries: Collection[str]) -> None:
    """Parameters that no call names are marked so: only then python-minifier shortens them."""
    calls = _own_calls_by_keyword(tree)
    named = {word.arg for call in calls for word in call.keywords}
    unpacking = {called_name(call) for call in calls if None in {w.arg for w in call.keywords}}
    kept = {*entries, *unpacking}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in kept:
            arguments = node.args
            if named.isdisjoint(one.arg for one in arguments.args):
                arguments.posonlyargs += arguments.args
                arguments.args = []


def _own_calls_by_keyword(tree: ast.Module) -> list[ast.Call]:
    """Calls with keywords of whatever is not an imported module's own."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    names = (one.asname or one.name for node in imports for one in node.names)
    imported = {name.partition(".")[0] for name in names}
    return [one for one in calls_in(tree) if one.keywords and _root(one.func) not in imported]


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def fingerprint(tree: ast.Module) -> str:
    """The tree without positions, and without the statements that only hold a literal."""
    bare = _WithoutLiterals().visit(ast.parse(ast.unparse(tree)))
    return ast.dump(bare)


class _WithoutLiterals(ast.NodeTransformer):
    """Docstrings and other lone literals taken out; a body that held nothing else becomes pass."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body:
                rest = [part for part in body if not is_literal(part)]
                setattr(node, field, rest or ([] if isinstance(node, ast.Module) else [ast.Pass()]))
        return node
