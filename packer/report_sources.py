"""A report of whatever a path holds: plan, artifact or checkpoint, told apart by content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from packer.account import Limits, count_code
from packer.errors import PlanError
from packer.files import is_json
from packer.planning import PackPlan, read_plan
from packer.report import Report, report_artifact, report_checkpoint, report_plan

PathLike = str | os.PathLike[str]


def load_report(
    path: PathLike,
    *,
    cap: int | None = None,
    code: Sequence[PathLike] = (),
    weights: str | None = None,
    drop: Sequence[str] = (),
) -> tuple[Report, PackPlan | None]:
    """(report, plan if the source is one). cap and code are for checkpoints, which carry neither.

    Raises PlanError, CheckpointError, decoder.ArtifactError: the source is damaged.
    """
    if is_json(path):
        if cap is not None or code:
            raise PlanError(f"{path} has its own cap and code; plan again to change them")
        plan = read_plan(path)
        return report_plan(plan, str(path)), plan
    if is_artifact(path):
        return report_artifact(Path(path).read_bytes(), str(path)), None
    from packer.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path, weights=weights, drop=drop)
    return report_checkpoint(checkpoint, Limits(cap or 0, count_code(code))), None


def is_artifact(path: PathLike) -> bool:
    """Whether a file starts with the magic of our artifacts."""
    from packer.decoder import MAGIC

    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC
