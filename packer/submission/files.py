"""Lists and reads the files of a submission folder: three levels deep, without following links, up
to a limit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from packer.code.texts import HEAD_BYTES, TAIL_BYTES, Text, read_text
from packer.errors import SubmissionError
from packer.submission.log_copies import without_copies
from packer.submission.training_log import TrainingLog, parse_logs

MAX_FILES = 20_000
MAX_LOGS = 200
MAX_DEPTH = 3
LOG_ENDINGS = (".log", ".txt", ".out")
READ = (*LOG_ENDINGS, ".py", ".json", ".md", ".ptz", ".pack")
COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".zip")
LOG_WORDS = ("log", "train", "seed")


@dataclass(frozen=True)
class Files:
    """paths: shallow ones first, each level in name order. notes: files left out, and why."""

    root: Path
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Logs:
    """logs: one per run, with at least one line of a training log. copies: (copy, original).
    silent: files named as logs without such a line, in words.

    notes: files read only in part or not at all.
    """

    logs: tuple[TrainingLog, ...]
    copies: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
    notes: tuple[str, ...]


def list_files(root: Path) -> Files:
    """Plain files without hidden ones, caches and links. Raises SubmissionError: too many."""
    listed: list[Path] = []
    notes: list[str] = []
    for where, folders, names in os.walk(root):
        folder = Path(where)
        depth = len(folder.relative_to(root).parts) + 1
        visible = [name for name in folders if not name.startswith((".", "__pycache__"))]
        folders[:] = [] if depth == MAX_DEPTH else visible
        for name in sorted((*names, *visible)):
            path = folder / name
            if path.is_symlink():
                notes += _unread(root, path, "a link, which is not followed")
            elif name in visible:
                notes += _unread(root, path, "a folder, no file of that name")
            elif not name.startswith(".") and path.is_file():
                listed.append(path)
        if len(listed) > MAX_FILES:
            raise SubmissionError(
                f"{root} holds more than {MAX_FILES:,} files; name one submission"
            )
    order = sorted(listed, key=lambda path: (len(path.relative_to(root).parts), path))
    return Files(root, tuple(order), tuple(notes))


def _unread(root: Path, path: Path, why: str) -> list[str]:
    """A note on a path that would be read if it were a plain file."""
    read = path.suffix.lower() in READ
    return [f"{path.relative_to(root).as_posix()}: {why}"] if read else []


def text_of(files: Files, path: Path, notes: list[str]) -> Text:
    """A file's text, empty if it cannot be read; adds a note on anything unusual."""
    name = files.name(path)
    try:
        text = read_text(path)
    except OSError as error:
        notes.append(f"{name}: cannot be read: {error.strerror}")
        return Text("", "utf-8")
    if text.left_out:
        notes.append(
            f"{name}: is {HEAD_BYTES + TAIL_BYTES + text.left_out:,} bytes; only the first "
            f"{HEAD_BYTES:,} and the last {TAIL_BYTES:,} are read"
        )
    if text.encoding != "utf-8" and not text.is_binary:
        notes.append(f"{name}: is read as {text.encoding}; other readers expect UTF-8")
    return text


def read_logs(files: Files) -> Logs:
    """Parses the logs, up to `MAX_LOGS`. Raises nothing: problems become notes."""
    logs: list[TrainingLog] = []
    silent: list[str] = []
    notes: list[str] = []
    named = [path for path in files.paths if path.suffix.lower() in LOG_ENDINGS]
    for path in files.paths:
        if path.suffix.lower() in COMPRESSED and path.stem.lower().endswith(LOG_ENDINGS):
            silent.append(f"{files.name(path)} is compressed; unpack it to have it read")
    for path in named[:MAX_LOGS]:
        text = text_of(files, path, notes)
        name = files.name(path)
        parsed, count, left = parse_logs(text.text, name, MAX_LOGS)
        logs += parsed
        if left:
            notes.append(f"{name}: {left:,} lines in its middle are not read")
        if count > 1:
            notes.append(f"{name} holds {count:,} runs, one after the other{_first_of(count)}")
        elif not parsed and _is_named_as_log(path):
            silent.append(f"{name} {_why_silent(text)}")
    if len(named) > MAX_LOGS:
        notes.append(f"{len(named):,} files could be logs; the first {MAX_LOGS} are read")
    if len(logs) > MAX_LOGS:
        notes.append(f"the logs hold {len(logs):,} runs; the first {MAX_LOGS} are read")
    kept, copies = without_copies(logs[:MAX_LOGS])
    notes += [f"{copy} is a copy of {log}; it counts once" for copy, log in copies]
    return Logs(kept, copies, tuple(silent), (*notes, *silent))


def _first_of(count: int) -> str:
    return f"; the first {MAX_LOGS} are read" if count > MAX_LOGS else ""


def _is_named_as_log(path: Path) -> bool:
    return path.suffix.lower() == ".log" or any(word in path.name.lower() for word in LOG_WORDS)


def _why_silent(text: Text) -> str:
    if text.is_binary:
        return "is no text in UTF-8, UTF-16, UTF-32 or Latin-1"
    if not text.text.strip():
        return "is empty"
    return "has no line of a training log"
