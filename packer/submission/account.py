"""The size of every run of a submission: as logged, and as shipped."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from packer.submission.artifacts import ArtifactFile
from packer.submission.code_reached import is_whole
from packer.submission.folder import Submission
from packer.submission.training_log import TrainingLog

# A file below this share of the logged model is not its later export, unless its weights match.
LEAST_SHARE = 0.5
# A script below this share of the logged code that unpacks nothing is not the code that was logged.
STUB_SHARE = 0.2
# The same for a self-extracting script: below this share it must unpack another file.
LEAST_PACKED_SHARE = 0.03
UNPACKS = re.compile(r"decompress|b85decode|b64decode|a85decode|zipfile|marshal")


@dataclass(frozen=True)
class RunAccount:
    """One run. name: of its log, or of its artifact if no log mentions it.

    logged_code, logged_total: as printed. shipped_code: bytes of all code in the folder that runs,
    own_code: of the script alone; None without code. is_stub: the script cannot be the logged code.
    superseded: the file that replaces this run, such as a later export of the same seed.
    """

    name: str
    seed: int | None
    model_bytes: int | None
    logged_code: int | None
    logged_total: int | None
    shipped_code: int | None
    own_code: int | None
    log: TrainingLog | None
    artifact: ArtifactFile | None
    is_stub: bool = False
    superseded: str | None = None

    @property
    def as_logged(self) -> int | None:
        """The printed total, or the sum of its printed parts."""
        if self.logged_total is not None:
            return self.logged_total
        return _sum(self.model_bytes, self.logged_code) if self.log else None

    @property
    def as_shipped(self) -> int | None:
        """The model with the code in the folder, if that is the code that ran."""
        return None if self.is_stub else _sum(self.model_bytes, self.shipped_code)

    @property
    def with_own_code(self) -> int | None:
        """The model with the script alone, without the other files that it runs."""
        return _sum(self.model_bytes, self.own_code)

    @property
    def counts_own_code(self) -> bool:
        """Whether the log counts the script alone, though it runs other files too."""
        return self.logged_code == self.own_code != self.shipped_code

    @property
    def counts_a_wrapper(self) -> bool:
        """Whether the log counts less code than is shipped: a packed copy that is not shipped."""
        if self.logged_code is None or self.own_code is None:
            return False
        return self.logged_code < self.own_code


def _sum(model: int | None, code: int | None) -> int | None:
    return None if model is None or code is None else model + code


def accounts(submission: Submission) -> tuple[RunAccount, ...]:
    """One account per log with sizes, then one per artifact that no log mentions and that could
    belong to a run.
    """
    runs: list[RunAccount] = []
    logged_artifacts: set[str] = set()
    code, own = submission.code_bytes, submission.own_code_bytes
    for log in submission.logs:
        if not log.models and not log.totals:
            continue
        sizes = {*(size for _, size in log.models), dict(log.totals).get("artifact")}
        artifact = next((one for one in submission.artifacts if one.size_bytes in sizes), None)
        if artifact is not None:
            logged_artifacts.add(artifact.name)
        model, total = _of_the_artifact(log, artifact)
        if model is None and total is not None and log.code_bytes is not None:
            model = total - log.code_bytes
        counted, stub = log.code_bytes, _is_stub(submission, log)
        runs.append(
            RunAccount(log.name, log.seed, model, counted, total, code, own, log, artifact, stub)
        )
    logged = list(runs)
    for artifact in submission.artifacts:
        could_be = not logged or any(_is_of(artifact, run) for run in logged)
        if artifact.name not in logged_artifacts and could_be:
            size = artifact.size_bytes
            runs.append(
                RunAccount(artifact.name, None, size, None, None, code, own, None, artifact)
            )
    return tuple(replace(run, superseded=_superseder(run, runs, submission)) for run in runs)


def _is_stub(submission: Submission, log: TrainingLog) -> bool:
    counted = max(log.code_bytes or 0, log.raw_code_bytes or 0)
    unpacks = any(UNPACKS.search(file.text) for file in submission.whole_code)
    if submission.code and all(map(is_whole, submission.whole_code)):
        return False
    least = LEAST_PACKED_SHARE if unpacks else STUB_SHARE
    return bool(submission.code) and (submission.code_bytes or 0) < least * counted


def _is_of(artifact: ArtifactFile, run: RunAccount) -> bool:
    """Whether a file could be a run's model, by its size or its number of weights."""
    model = run.model_bytes or run.as_logged or 0
    if artifact.size_bytes >= LEAST_SHARE * model:
        return True
    weights = sum(math.prod(shape) for shape in artifact.shapes.values())
    parameters = run.log.parameters if run.log is not None else None
    return parameters is not None and abs(weights - parameters) < 0.05 * parameters


def _superseder(run: RunAccount, runs: list[RunAccount], submission: Submission) -> str | None:
    """The name of what replaces a logged run: an exported file that no log mentions, if there is
    one for every run without a file; or another log of its seed, if that one is claimed.
    """
    if run.log is None or run.artifact is not None:
        return None
    exported = [
        other
        for other in runs
        if other.log is None and other.artifact and _is_of(other.artifact, run)
    ]
    packs = [one.name for one in exported if one.artifact and one.artifact.codec == "bytecap"]
    if len(packs) == 1:  # re-encoded after the logs, which cannot know its size
        return packs[0]
    fileless = [other for other in runs if other.artifact is None]
    if exported and len(exported) >= len(fileless):
        return exported[fileless.index(run)].name
    claims = submission.claims
    if claims is None or run.seed is None:
        return None
    claimed = {claim.size_bytes for claim in claims.seed_claims if claim.seed == str(run.seed)}
    if claims.total is not None:
        claimed.add(round(claims.total.value))
    claimed.discard(None)
    rivals = [other for other in runs if other is not run and other.seed == run.seed]
    if claimed & {run.as_logged, run.as_shipped}:
        return None
    return next((o.name for o in rivals if claimed & {o.as_logged, o.as_shipped}), None)


def _of_the_artifact(
    log: TrainingLog, artifact: ArtifactFile | None
) -> tuple[int | None, int | None]:
    """(model bytes, total) of the label with the artifact's size, else of the likely label."""
    if artifact is not None:
        labels = [label for label, size in log.models if size == artifact.size_bytes]
        if not labels:  # the log's "artifact" is the model alone
            return artifact.size_bytes, None
        return artifact.size_bytes, dict(log.totals).get(labels[-1], log.total_bytes)
    return log.model_bytes, log.total_bytes


def largest_total(submission: Submission) -> int | None:
    """The size of the largest run, as shipped if known, else as logged."""
    totals = [_best_known(run) for run in accounts(submission) if run.superseded is None]
    known = [total for total in totals if total is not None]
    return max(known) if known else None


def _best_known(run: RunAccount) -> int | None:
    """The total as shipped, unless the log counted a wrapper or the script alone: whether that is
    right is a rule of its own."""
    other_code = run.counts_a_wrapper or run.counts_own_code
    if run.as_shipped is None or (other_code and run.as_logged is not None):
        return run.as_logged
    return run.as_shipped
