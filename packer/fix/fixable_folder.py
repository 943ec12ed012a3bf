"""The parts of a submission folder that a repair needs: artifact, code, runs and claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packer.checkpoint.checkpoint import read_checkpoint
from packer.code.pack_script import SourceFile
from packer.errors import CheckpointError, SubmissionError
from packer.foreign.tensors import ForeignArtifact
from packer.submission.account import RunAccount, accounts
from packer.submission.artifacts import ArtifactFile
from packer.submission.claims import CLAIMS
from packer.submission.code_files import ENTRY_NAMES
from packer.submission.folder import Submission, read_submission


@dataclass(frozen=True)
class Folder:
    """The parts of a submission folder that a repair needs.

    artifact: its path in the folder, None if only logs mention it; foreign: None then, and for an
    artifact of ours. artifact_bytes: its size, or the largest that a log names. others: runs whose
    artifacts are not in the folder -> their model bytes. code: all files that run, the entry first;
    executed: those that are run by file name. claims: None without submission.json.
    seeds: seed -> model bytes, for runs with a known seed; own_seed: of the artifact's run.
    """

    root: Path
    artifact: str | None
    foreign: ForeignArtifact | None
    artifact_bytes: int
    others: Mapping[str, int]
    code: tuple[SourceFile, ...]
    executed: frozenset[str]
    claims: Mapping[str, Any] | None
    seeds: Mapping[str, int] = field(default_factory=dict)
    own_seed: str | None = None

    @property
    def code_bytes(self) -> int:
        return sum(file.size_bytes for file in self.code)

    @property
    def largest_model(self) -> int:
        """Bytes of the largest run's model: that run is compared with the cap."""
        return max(self.artifact_bytes, *self.others.values(), 0)


def read_folder(
    root: Path,
    code: Sequence[str] = (),
    template: str | None = None,
    max_memory: int | None = None,
) -> Folder:
    """The artifact, recognized by its content, the code that counts, and the claims.

    code: the files that count, the entry first; without them train_gpt.py, or the only Python
    file. Raises SubmissionError: several artifacts, none that a log names, no code.
    CheckpointError: a damaged artifact.
    """
    submission = read_submission(root, code=code, max_memory=max_memory)
    if not submission.code:
        raise SubmissionError(
            f"{root}: {len(submission.beside)} Python files and none is {ENTRY_NAMES[0]}; name "
            "those that count with --code, the one that is run first"
        )
    if submission.claims is not None and submission.claims.problem is not None:
        raise SubmissionError(
            f"{root / CLAIMS}: {submission.claims.problem}; correct it by hand first"
        )
    every = accounts(submission)
    runs = [run for run in every if run.superseded is None]
    _refuse_stub(submission, runs)
    artifact = _only_artifact(submission, every)
    sizes = {run.name: _model_bytes(run) for run in runs if run.artifact is None}
    others = {name: size for name, size in sizes.items() if size is not None}
    if artifact is None and not others:
        raise SubmissionError(
            f"{root}: holds no artifact, and no log names the size of one; put the artifact there"
        )
    foreign = None
    if artifact is not None and artifact.codec != "bytecap":
        path = root / artifact.name
        foreign = read_checkpoint(path, template=template, max_memory=max_memory).foreign
    return Folder(
        root,
        artifact.name if artifact else None,
        foreign,
        artifact.size_bytes if artifact else max(others.values()),
        others,
        submission.whole_code,
        frozenset(file.path for file in submission.executed),
        None if submission.claims is None else submission.claims.value,
        _by_seed(runs),
        next((str(r.seed) for r in runs if r.artifact is artifact and r.seed is not None), None)
        if artifact
        else None,
    )


def _by_seed(runs: Sequence[RunAccount]) -> dict[str, int]:
    """Seed -> model bytes, of seeds with one run."""
    models = [(str(run.seed), _model_bytes(run)) for run in runs if run.seed is not None]
    seeds = Counter(seed for seed, _ in models)
    return {seed: size for seed, size in models if size is not None and seeds[seed] == 1}


def _refuse_stub(submission: Submission, runs: Sequence[RunAccount]) -> None:
    """Raises SubmissionError: the script cannot be the code that a log counts."""
    stub = next((run for run in runs if run.is_stub), None)
    if stub is not None:
        entry = submission.code[0]
        raise SubmissionError(
            f"{Path(submission.folder) / entry.path}: has {entry.size_bytes:,} bytes and unpacks "
            f"nothing, while {stub.name} counts {stub.logged_code:,} bytes of code; name every "
            "file that runs with --code, this one first"
        )


def _model_bytes(run: RunAccount) -> int | None:
    """Bytes of a run's model: as logged, or the logged total less the code."""
    if run.model_bytes is not None or run.as_logged is None or run.own_code is None:
        return run.model_bytes
    left = run.as_logged - run.own_code
    return left if left > 0 else None


def _only_artifact(submission: Submission, runs: Sequence[RunAccount]) -> ArtifactFile | None:
    """The one artifact that belongs to a run, by its size; None without one.

    Raises SubmissionError: several, which must be fixed one by one. CheckpointError: damaged.
    """
    counted = {run.artifact.name: run.artifact for run in runs if run.artifact is not None}
    for one in counted.values():
        if one.problem is not None:
            raise CheckpointError(one.problem)
    artifacts = [one for one in counted.values() if one.layout != "plain weights"]
    if len(artifacts) > 1:
        root = Path(submission.folder)
        sizes = ", ".join(f"{one.name} {one.size_bytes:,}" for one in artifacts)
        raise SubmissionError(
            f"{root}: holds {len(artifacts)} artifacts ({sizes}); fix them one by one, such as "
            f"packer fix {root / artifacts[0].name} --code {root / submission.code[0].path}, or "
            "leave the one that is submitted"
        )
    return artifacts[0] if artifacts else None
