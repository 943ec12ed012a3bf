"""What every run of a submission weighs: as its log says, and as its files are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from packer.submission.artifacts import ArtifactFile
from packer.submission.folder import Submission
from packer.submission.training_log import TrainingLog

# A file of less than half of what a run logged is no later export of it, unless it has its weights.
LEAST_SHARE = 0.5
# A script that is so much smaller than what the log counted, and unpacks nothing, is another one.
STUB_SHARE = 0.2
# One that unpacks holds no source in less than this: it unpacks another file.
LEAST_PACKED_SHARE = 0.03
UNPACKS = re.compile(r"decompress|b85decode|b64decode|a85decode|zipfile|marshal")


@dataclass(frozen=True)
class RunAccount:
    """One run. name: of its log, or of its artifact where no log speaks of it.

    logged_code, logged_total: as printed. shipped_code: bytes of all code in the folder that runs,
    own_code: of the script alone; None without. is_stub: the script cannot be what was logged.
    superseded: the file that takes this run's place, such as a later export of the same seed.
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
        """The model with the code that lies in the folder, where that is the code that ran."""
        return None if self.is_stub else _sum(self.model_bytes, self.shipped_code)

    @property
    def with_own_code(self) -> int | None:
        """The model with the script alone, without the files that it runs."""
        return _sum(self.model_bytes, self.own_code)

    @property
    def counts_own_code(self) -> bool:
        """Whether the log counts the script alone, though it runs other files too."""
        return self.logged_code == self.own_code != self.shipped_code

    @property
    def counts_a_wrapper(self) -> bool:
        """Whether the log counts less code than is shipped: a packed copy nobody shipped."""
        if self.logged_code is None or self.own_code is None:
            return False
        return self.logged_code < self.own_code


def _sum(model: int | None, code: int | None) -> int | None:
    return None if model is None or code is None else model + code


def accounts(submission: Submission) -> tuple[RunAccount, ...]:
    """One account per log that speaks of sizes, then one per artifact that no log speaks of and
    that could be a run's.
    """
    found: list[RunAccount] = []
    spoken: set[str] = set()
    code, own = submission.code_bytes, submission.own_code_bytes
    for log in submission.logs:
        if not log.models and not log.totals:
            continue
        sizes = {*(size for _, size in log.models), dict(log.totals).get("artifact")}
        artifact = next((one for one in submission.artifacts if one.size_bytes in sizes), None)
        if artifact is not None:
            spoken.add(artifact.name)
        model, total = _of_the_artifact(log, artifact)
        if model is None and total is not None and log.code_bytes is not None:
            model = total - log.code_bytes
        counted, stub = log.code_bytes, _is_stub(submission, log)
        found.append(
            RunAccount(log.name, log.seed, model, counted, total, code, own, log, artifact, stub)
        )
    logged = list(found)
    for artifact in submission.artifacts:
        could_be = not logged or any(_is_of(artifact, run) for run in logged)
        if artifact.name not in spoken and could_be:
            size = artifact.size_bytes
            found.append(
                RunAccount(artifact.name, None, size, None, None, code, own, None, artifact)
            )
    return tuple(replace(run, superseded=_superseder(run, found, submission)) for run in found)


def _is_stub(submission: Submission, log: TrainingLog) -> bool:
    counted = max(log.code_bytes or 0, log.raw_code_bytes or 0)
    unpacks = any(UNPACKS.search(file.text) for file in submission.whole_code)
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
    """What takes a logged run's place: an exported file that no log speaks of, as long as there is
    one for every run without a file; or another log of its seed, if that is the one claimed.
    """
    if run.log is None or run.artifact is not None:
        return None
    exported = [
        other
        for other in runs
        if other.log is None and other.artifact and _is_of(other.artifact, run)
    ]
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
    """(model bytes, total) of the label whose size the artifact has, else of the likely label."""
    if artifact is not None:
        labels = [label for label, size in log.models if size == artifact.size_bytes]
        if not labels:  # what the log calls the artifact is the model alone
            return artifact.size_bytes, None
        return artifact.size_bytes, dict(log.totals).get(labels[-1], log.total_bytes)
    return log.model_bytes, log.total_bytes


def largest_total(submission: Submission) -> int | None:
    """The most that any run weighs, as shipped where the files say, else as logged."""
    totals = [_best_known(run) for run in accounts(submission) if run.superseded is None]
    known = [total for total in totals if total is not None]
    return max(known) if known else None


def _best_known(run: RunAccount) -> int | None:
    """A wrapper that was counted stands for the code, and so does the script alone: whether that
    holds is a rule of its own."""
    other_code = run.counts_a_wrapper or run.counts_own_code
    if run.as_shipped is None or (other_code and run.as_logged is not None):
        return run.as_logged
    return run.as_shipped
