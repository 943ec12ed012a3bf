"""A submission folder as a value: code, artifacts, claims, logs, README. Nothing in it is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packer.code.packing import SourceFile, read_sources
from packer.code.wrapper import ENTRY
from packer.errors import CodeError, SubmissionError
from packer.submission.artifacts import ArtifactFile, is_artifact_file, read_artifact_file
from packer.submission.claims import Claims, parse_claims
from packer.submission.files import list_files, read_logs, text_of
from packer.submission.training_log import TrainingLog

ENTRY_NAMES = ("train_gpt.py", "train_gpt_mlx.py", "train.py")
Progress = Callable[[str, int, int], None]


def ignore_progress(what: str, done: int, total: int) -> None:
    """The default: tell nobody."""


@dataclass(frozen=True)
class Submission:
    """code: the entry first, then what else counts. imported: further files of the folder that the
    code imports. beside: the other Python files. claims: None without a submission.json.

    In words: unread_code: Python files that cannot be read; silent_logs: files called logs that say
    nothing; notes: what could not be read, or only in part.
    """

    folder: str
    code: tuple[SourceFile, ...] = ()
    imported: tuple[SourceFile, ...] = ()
    beside: tuple[SourceFile, ...] = ()
    unread_code: tuple[str, ...] = ()
    artifacts: tuple[ArtifactFile, ...] = ()
    claims: Claims | None = None
    logs: tuple[TrainingLog, ...] = ()
    silent_logs: tuple[str, ...] = ()
    readme: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def code_bytes(self) -> int | None:
        """Bytes of the files that count as code; None without any."""
        return sum(file.size_bytes for file in self.code) if self.code else None


def read_submission(
    folder: str | os.PathLike[str],
    *,
    code: Sequence[str | os.PathLike[str]] = (),
    max_memory: int | None = None,
    progress: Progress = ignore_progress,
) -> Submission:
    """Everything of interest in a folder, three levels deep.

    code: the files that count, the entry first; without them train_gpt.py, or the only Python file.
    Raises SubmissionError: no folder, too many files, or nothing that could be checked.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SubmissionError(f"{folder} is not a folder; name a submission's folder")
    files = list_files(root)
    paths, notes = files.paths, list(files.notes)
    unread: list[str] = []
    counted, others = _sources(root, paths, code, unread)
    notes += unread
    imported = _imports_of(counted, others)
    artifacts = []
    found = [path for path in paths if is_artifact_file(path)]
    for done, path in enumerate(found):
        progress(path.name, done, len(found))
        artifacts.append(read_artifact_file(path, files.name(path), max_memory))
    claims = next((path for path in paths if path.name == "submission.json"), None)
    readme = next((path for path in paths if path.name.lower() == "readme.md"), None)
    logs = read_logs(files)
    submission = Submission(
        str(folder),
        counted,
        imported,
        tuple(file for file in others if file not in imported),
        tuple(unread),
        tuple(artifacts),
        parse_claims(text_of(files, claims, notes).text) if claims else None,
        logs.logs,
        logs.silent,
        text_of(files, readme, notes).text if readme else None,
        (*notes, *logs.notes),
    )
    if not (submission.code or submission.artifacts or submission.claims or submission.logs):
        raise SubmissionError(
            f"{folder} holds no train_gpt.py, artifact, submission.json or log; name the folder "
            "that does"
        )
    return submission


def _sources(
    root: Path, paths: Sequence[Path], code: Sequence[str | os.PathLike[str]], notes: list[str]
) -> tuple[tuple[SourceFile, ...], tuple[SourceFile, ...]]:
    """(counted, others); paths of files inside the folder are relative to it."""
    python = [path for path in paths if path.suffix == ".py"]
    named = [Path(path) for path in code]
    if not named:
        entry = next((p for n in ENTRY_NAMES for p in python if p.name == n), None)
        if entry is None and len(python) == 1:
            entry = python[0]
        named = [entry] if entry else []
    counted = [_source(path, named[0].parent, root, notes) for path in named]
    known = {path.resolve() for path in named}
    if counted and counted[0] is not None:
        counted[0] = replace(counted[0], module=ENTRY)
    anchor = named[0].parent if named else root
    rest = [_source(p, anchor, root, notes) for p in python if p.resolve() not in known]
    return tuple(s for s in counted if s), tuple(s for s in rest if s)


def _source(path: Path, anchor: Path, root: Path, notes: list[str]) -> SourceFile | None:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    try:
        (found,) = read_sources([path])
    except CodeError as error:
        notes.append(str(error))
        return None
    inside = path.relative_to(anchor) if path.is_relative_to(anchor) else Path(path.name)
    module = ".".join(inside.with_suffix("").parts)
    return SourceFile(name, module, found.text, found.size_bytes)


def _imports_of(code: Sequence[SourceFile], others: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Files among the others that the code imports, and what those import."""
    modules = {file.module: file for file in others}
    found: dict[str, SourceFile] = {}
    waiting = list(code)
    while waiting:
        for name in _imported_names(waiting.pop().text):
            file = modules.get(name)
            if file is not None and name not in found:
                found[name] = file
                waiting.append(file)
    return tuple(found.values())


def _imported_names(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
