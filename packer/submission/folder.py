"""Reads a submission folder: code, artifacts, claims, logs and README. Nothing in it is run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.code.pack_script import SourceFile
from packer.errors import SubmissionError
from packer.progress import Progress, ignore_progress
from packer.submission.artifacts import ArtifactFile, is_artifact_file, read_artifact_file
from packer.submission.claims import CLAIMS, Claims, parse_claims
from packer.submission.code_files import CodeSizes, read_code
from packer.submission.files import list_files, read_logs, text_of
from packer.submission.track import unlimited_by
from packer.submission.training_log import TrainingLog


@dataclass(frozen=True)
class Submission:
    """code: the entry first, then the other files of --code. imported, executed: further files of
    the folder that it runs. beside: the other Python files. claims: None without submission.json.

    logs: one per run; copies: (copy, original). unlimited: the evidence that the track has no time
    limits, None without.
    In words: unread_code: unreadable Python files; silent_logs: files named as logs without any log
    line; notes: files that could be read only in part or not at all.
    """

    folder: str
    code: tuple[SourceFile, ...] = ()
    imported: tuple[SourceFile, ...] = ()
    executed: tuple[SourceFile, ...] = ()
    beside: tuple[SourceFile, ...] = ()
    unread_code: tuple[str, ...] = ()
    artifacts: tuple[ArtifactFile, ...] = ()
    claims: Claims | None = None
    logs: tuple[TrainingLog, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    silent_logs: tuple[str, ...] = ()
    readme: str | None = None
    unlimited: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def whole_code(self) -> tuple[SourceFile, ...]:
        """Every file that runs, the entry first."""
        return (*self.code, *self.imported, *self.executed)

    @property
    def code_bytes(self) -> int | None:
        """Bytes of every file that runs; None without any."""
        return sum(file.size_bytes for file in self.whole_code) if self.code else None

    @property
    def own_code_bytes(self) -> int | None:
        """Bytes of the files in `code` alone, as counted by scripts that read their own source."""
        return sum(file.size_bytes for file in self.code) if self.code else None


def read_submission(
    folder: str | os.PathLike[str],
    *,
    code: Sequence[str | os.PathLike[str]] = (),
    max_memory: int | None = None,
    progress: Progress = ignore_progress,
) -> Submission:
    """Reads a folder, three levels deep.

    code: the files that count, the entry first; without them train_gpt.py, or the only Python file.
    Raises SubmissionError: no folder, too many files, or nothing to check.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SubmissionError(f"{folder} is not a folder; name a submission's folder")
    files = list_files(root)
    paths, notes = files.paths, list(files.notes)
    claims_path = next((path for path in paths if path.name == CLAIMS), None)
    readme_path = next((path for path in paths if path.name.lower() == "readme.md"), None)
    readme = text_of(files, readme_path, notes).text if readme_path else None
    claims = parse_claims(text_of(files, claims_path, notes).text) if claims_path else None
    logs = read_logs(files)
    artifacts = []
    artifact_paths = [path for path in paths if is_artifact_file(path)]
    for done, path in enumerate(artifact_paths):
        progress(path.name, done, len(artifact_paths))
        artifact = read_artifact_file(path, files.name(path), max_memory)
        if artifact is None:
            notes.append(f"{files.name(path)} unpacks to text; it is no artifact")
        else:
            artifacts.append(artifact)
    has_pack = any(one.codec == "bytecap" for one in artifacts)
    sources = read_code(files, code, _code_sizes(claims, logs.logs), has_pack)
    submission = Submission(
        str(folder),
        sources.code,
        sources.reached.imported,
        sources.reached.executed,
        sources.beside,
        sources.unread,
        tuple(artifacts),
        claims,
        logs.logs,
        logs.copies,
        logs.silent,
        readme,
        unlimited_by(str(folder), claims, readme),
        (*notes, *sources.unread, *logs.notes),
    )
    if not (submission.code or submission.artifacts or submission.claims or submission.logs):
        raise SubmissionError(
            f"{folder} holds no train_gpt.py, artifact, submission.json or log; name the folder "
            "that does"
        )
    return submission


def _code_sizes(claims: Claims | None, logs: Sequence[TrainingLog]) -> CodeSizes:
    claimed = claims.code if claims is not None else None
    logged = {size for log in logs for size in (log.code_bytes, log.raw_code_bytes)}
    return CodeSizes(round(claimed.value) if claimed else None, frozenset(logged - {None}))
