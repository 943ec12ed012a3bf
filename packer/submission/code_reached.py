"""Finds the Python files of a folder that run with the submitted script, by names in its code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from packer.code.pack_script import SourceFile
from packer.code.self_extracting import unwrap
from packer.code.syntax import called_name, calls_in, parse_if_possible
from packer.errors import CodeError

# For sources that do not parse, such as those of a newer Python.
IMPORT_LINE = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
# Calls that run a file, or source text read from one.
RUNS = {"exec", "run_path", "run", "Popen", "call", "check_call", "check_output", "execv", "execvp"}
RUNS |= {"system", "spec_from_file_location", "SourceFileLoader", "execfile", "spawn"}
NAMES_MODULE = {"import_module", "__import__", "run_module"}


@dataclass(frozen=True)
class Reached:
    """imported: as modules next to the script. executed: run by their file names."""

    imported: tuple[SourceFile, ...] = ()
    executed: tuple[SourceFile, ...] = ()


def packed_in(file: SourceFile) -> dict[str, str]:
    """Module -> source of a self-extracting script; empty of another, or of a damaged one."""
    try:
        return unwrap(file.text) or {}
    except CodeError:
        return {}


def is_whole(file: SourceFile) -> bool:
    """Whether a script extracts itself, and what it holds runs no other file."""
    inside = packed_in(file)
    return bool(inside) and not any(map(_runs_files, inside.values()))


def reached(
    code: Sequence[SourceFile], others: Sequence[SourceFile], has_pack: bool = False
) -> Reached:
    """The others that the code imports or executes, directly or through others.

    has_pack: there is an artifact of ours, so that a loader.py next to the script is used.
    """
    modules = {_importable(file): file for file in others}
    imported: dict[str, SourceFile] = {}
    executed: dict[str, SourceFile] = {}
    waiting = list(code)
    inside = {name for file in code for name in packed_in(file)}
    if has_pack and "loader" in modules and "loader" not in inside:
        imported["loader"] = modules["loader"]
        waiting.append(modules["loader"])
    while waiting:
        file = waiting.pop()
        for text in packed_in(file).values() or (file.text,):
            for name in _imported_names(text):
                if name in modules and name not in imported and name not in inside:
                    imported[name] = modules[name]
                    waiting.append(modules[name])
            for other in _executed(text, file.path, others):
                if other.path not in executed and other not in imported.values():
                    executed[other.path] = other
                    waiting.append(other)
    kept = tuple(one for path, one in executed.items() if one not in imported.values())
    return Reached(tuple(imported.values()), kept)


def _importable(file: SourceFile) -> str:
    return file.module.removesuffix(".__init__")


def _imported_names(source: str) -> set[str]:
    tree = parse_if_possible(source)
    if tree is None:
        return set(IMPORT_LINE.findall(source))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            names |= {f"{base}{alias.name}" for alias in node.names} | {node.module or ""}
        elif isinstance(node, ast.Call) and called_name(node) in NAMES_MODULE:
            names |= {one.value for one in node.args if _is_text(one)}  # type: ignore[attr-defined]
    # Importing a module runs the packages around it.
    return names | {name.rpartition(".")[0] for name in names}


def _executed(source: str, path: str, others: Sequence[SourceFile]) -> Iterator[SourceFile]:
    """Others whose full file names occur as strings in code that runs files."""
    tree = parse_if_possible(source)
    if tree is None or not _runs_files(source):
        return
    named = set(_texts(tree))
    for call in calls_in(tree):
        if called_name(call) == "replace" and len(call.args) == 2 and all(map(_is_text, call.args)):
            old, new = (one.value for one in call.args)  # type: ignore[attr-defined]
            named.add(PurePosixPath(path).name.replace(old, new))
    names = {PurePosixPath(text).name for text in named}
    yield from (file for file in others if PurePosixPath(file.path).name in names)


def _runs_files(source: str) -> bool:
    """Whether code calls what can run a file; True if it does not parse."""
    tree = parse_if_possible(source)
    return tree is None or any(called_name(call) in RUNS for call in calls_in(tree))


def _texts(tree: ast.Module) -> Iterator[str]:
    """The .py names in strings that are only such a name, or a command with such names; without
    docstrings."""
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if _is_text(node) and id(node) not in lone:
            words = node.value.split()  # type: ignore[attr-defined]
            command = words and PurePosixPath(words[0]).name.startswith(("python", "torchrun"))
            if len(words) == 1 or command:
                yield from (word for word in words if word.endswith(".py"))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
