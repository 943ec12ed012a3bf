"""The Python files of a submission folder: the script that is run, and the files it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packer.code.pack_script import SourceFile, read_sources
from packer.code.self_extracting import ENTRY
from packer.errors import CodeError
from packer.submission.code_reached import Reached, reached
from packer.submission.files import Files

ENTRY_NAMES = ("train_gpt.py", "train_gpt_mlx.py", "train.py")


@dataclass(frozen=True)
class CodeSizes:
    """Bytes of code: as claimed in submission.json, None without a claim; as counted by logs."""

    claimed: int | None = None
    logged: frozenset[int | None] = frozenset()


@dataclass(frozen=True)
class CodeFiles:
    """code: the entry first. beside: files that it does not run. unread: unreadable files."""

    code: tuple[SourceFile, ...]
    reached: Reached
    beside: tuple[SourceFile, ...]
    unread: tuple[str, ...]


def read_code(
    files: Files, named: Sequence[str | os.PathLike[str]], sizes: CodeSizes, has_pack: bool
) -> CodeFiles:
    """The sources, paths inside the folder relative to it.

    named: the files that count, the entry first. Without them the entry is train_gpt.py or another
    of `ENTRY_NAMES`, or the only Python file, or the only one of a claimed or logged size; a file
    of the claimed size goes before a train_gpt.py of another size, unless that runs it.
    """
    python = [path for path in files.paths if path.suffix == ".py"]
    paths = [_found(path, files.root) for path in named]
    if not paths:
        entry = next((p for name in ENTRY_NAMES for p in python if p.name == name), None)
        if entry is None and len(python) == 1:
            entry = python[0]
        wanted = {sizes.claimed} if entry else {sizes.claimed, *sizes.logged}
        of_size = [path for path in python if path.stat().st_size in wanted]
        paths = [entry] if entry else of_size if len(of_size) == 1 else []
        if entry is not None and len(of_size) == 1 and entry not in of_size:
            by_size = _read(files, python, of_size, has_pack)
            by_name = _read(files, python, paths, has_pack)
            runs = (*by_name.reached.imported, *by_name.reached.executed)
            return by_name if any(one.path == by_size.code[0].path for one in runs) else by_size
    return _read(files, python, paths, has_pack)


def _found(name: str | os.PathLike[str], root: Path) -> Path:
    """A named file, relative to the working folder or else to the submission folder."""
    path = Path(name)
    return root / path if not path.exists() and (root / path).exists() else path


def _read(
    files: Files, python: Sequence[Path], entry_first: Sequence[Path], has_pack: bool
) -> CodeFiles:
    unread: list[str] = []
    anchor = entry_first[0].parent if entry_first else files.root
    counted = [_source(path, anchor, files.root, unread) for path in entry_first]
    known = {path.resolve() for path in entry_first}
    if counted and counted[0] is not None:
        counted[0] = replace(counted[0], module=ENTRY)
    rest = [_source(p, anchor, files.root, unread) for p in python if p.resolve() not in known]
    code = tuple(one for one in counted if one)
    others = tuple(one for one in rest if one)
    runs = reached(code, others, has_pack) if code else Reached()
    with_it = (*runs.imported, *runs.executed)
    return CodeFiles(code, runs, tuple(o for o in others if o not in with_it), tuple(unread))


def _source(path: Path, anchor: Path, root: Path, unread: list[str]) -> SourceFile | None:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    try:
        (source,) = read_sources([path])
    except CodeError as error:
        unread.append(str(error))
        return None
    inside = path.relative_to(anchor) if path.is_relative_to(anchor) else Path(path.name)
    module = ".".join(inside.with_suffix("").parts)
    return SourceFile(name, module, source.text, source.size_bytes)
